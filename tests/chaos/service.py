"""The service under test: the guard with its binder, and a log reader that can stop reading."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from multibinder import Client, MultibinderError
from tests.support import BrokenCode, clean_environment, is_alive, wait_until

#: A pipe as small as the kernel makes it, so that a reader that stops for a second matters.
_PIPE_BYTES = 4096

#: The wall clock jumps as a file says. It is not libfaketime, because clock_nanosleep(2) fails under that.
_CLOCK = """
import os, time
_path, _time, _time_ns = os.environ["CHAOS_CLOCK"], time.time, time.time_ns
def _offset():
    try:
        with open(_path) as file:
            return int(file.read() or 0)
    except (OSError, ValueError):
        return 0
time.time = lambda: _time() + _offset()
time.time_ns = lambda: _time_ns() + _offset() * 10**9
"""


class LogReader:
    """Reads the log of guard and binder from a pipe into a file, except while it pauses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reading, self.writing = os.pipe()
        fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._may_read = threading.Event()
        self._may_read.set()
        self._thread = threading.Thread(target=self._run, name="log reader", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self.path.open("ab", buffering=0) as log:
            while self._may_read.wait() and (data := os.read(self._reading, 65536)):
                log.write(data)
        os.close(self._reading)

    def pause(self, seconds: float) -> None:
        self._may_read.clear()
        time.sleep(seconds)
        self._may_read.set()

    def text(self) -> str:
        return self.path.read_text(errors="replace")


class Service:
    """``multibinder serve --guard``, from the start of the context to its end."""

    def __init__(self, directory: Path, control: Path) -> None:
        self.socket_path = control / "mb.sock"
        self.control = control
        self.code = BrokenCode(directory / "code")
        (directory / "code" / "sitecustomize.py").write_text(_CLOCK)
        self._clock = directory / "clock"
        self.log = LogReader(directory / "mb.log")
        environment = clean_environment({**self.code.environment, "CHAOS_CLOCK": str(self._clock)})
        command = [sys.executable, "-m", "multibinder", "serve", "--guard", "--socket", str(self.socket_path)]
        self.process = subprocess.Popen(
            [*command, "--mode", "0666"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log.writing,
            stderr=self.log.writing,
        )
        os.close(self.log.writing)

    @property
    def guard(self) -> int:
        return self.process.pid

    def binder(self) -> int | None:
        """Return the PID of the running binder; None between two."""
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{self.guard}/task/{self.guard}/children").read_text().split():
                with contextlib.suppress(OSError):
                    if b"multibinder.cli.binder_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                        return int(child)
        return None

    def set_clock(self, offset_s: int) -> None:
        self._clock.write_text(str(offset_s))

    def answers(self) -> bool:
        with contextlib.suppress(MultibinderError), Client(self.socket_path, timeout=2) as client:
            return client.hello().pid == self.binder()
        return False

    def wait_until_it_answers(self) -> None:
        """Wait longer than the 15 s that the binder may take to see that its control socket was removed."""
        if self.process.poll() is not None:
            pytest.fail(f"the guard ended with {self.process.returncode}\n{self.last_lines()}")
        wait_until(self.answers, "the binder answers", log=self.last_lines, timeout_s=60)

    def last_lines(self) -> str:
        return self.log.text()[-8000:]

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        binder = self.binder()
        for pid in filter(None, (self.guard, binder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and (self.process.poll() is None or (binder and is_alive(binder))):
            time.sleep(0.02)
        for pid in filter(None, (self.guard, binder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class Usage:
    """The descriptors and the memory of a process."""

    def __init__(self, pid: int) -> None:
        self.descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        status = Path(f"/proc/{pid}/status").read_text()
        self.memory_kib = int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])

    def __str__(self) -> str:
        return f"{self.descriptors} descriptors, {self.memory_kib / 1024:.1f} MB"
