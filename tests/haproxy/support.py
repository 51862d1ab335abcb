"""Run a real HAProxy through the wrapper, as its users do."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import pytest
from multibinder_haproxy.master import Master, Processes

from multibinder.launch.errors import Unreachable
from tests.haproxy.versions import HAPROXY as HAPROXY
from tests.haproxy.versions import version_of
from tests.support import PATIENCE_S, clean_environment, descriptors, require, wait_until
from tests.support.load import Result

WRAPPER = Path(sys.executable).parent / "multibinder-haproxy"

Json = dict[str, Any]


def assert_none_lost(result: Result, log: str = "") -> None:
    """Fail if a connection got no answer, or got it later than after 5 s.

    The load needs a longer timeout than that: ``timeout_s=PATIENCE_S``.
    """
    assert result.total.tried > 0
    assert result.total.failed == 0, f"{result.table()}\n{log}"
    assert result.total.longest_stall_s < 5, f"{result.table()}\n{log}"


def config(*binds: str, before: str = "", after: str = "") -> str:
    """Return a template whose only frontend answers by itself on these binds (Jinja2 expressions or plain text)."""
    lines = "\n".join(f"    bind {bind}" for bind in binds)
    return f"""global
    maxconn 2000
{before}
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s

frontend web
{lines}
    http-request return status 200 content-type text/plain string ok
{after}
"""


def bind_tcp(address: tuple[str, int], options: str = "") -> str:
    return f"{{{{ bind_tcp('{address[0]}', {address[1]}{', ' + options if options else ''}) }}}}"


def get(address: tuple[str, int], timeout_s: float = PATIENCE_S) -> str:
    with urllib.request.urlopen(f"http://{address[0]}:{address[1]}/", timeout=timeout_s) as reply:
        return str(reply.read().decode())


class Haproxy:
    """An instance: ``multibinder-haproxy run`` as a subprocess, which becomes HAProxy's master."""

    def __init__(
        self,
        directory: Path,
        binder_socket: Path | None,
        *,
        name: str = "web",
        haproxy: str = HAPROXY,
        environment: Mapping[str, str] | None = None,
        wrapper: Path = WRAPPER,
    ) -> None:
        require("haproxy", shutil.which(haproxy), f"there is no {haproxy}")
        require("multibinder-haproxy", wrapper.exists(), f"there is no {wrapper}: install the project")
        self.wrapper = wrapper
        self.directory = directory
        self.name = name
        self.haproxy = haproxy
        self.template = directory / f"{name}.cfg.j2"
        self.log_path = directory / f"{name}.haproxy.log"
        self.runtime = directory / "run"
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = clean_environment(
            {"MULTIBINDER_HAPROXY_RUNTIME_DIR": str(self.runtime), **(environment or {})}
        )
        if binder_socket is not None:
            self.environment["MULTIBINDER_SOCK"] = str(binder_socket)

    @property
    def version(self) -> tuple[int, int]:
        return version_of(self.haproxy)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(
        self, *options: str, arguments: Sequence[str] | None = None, prefix: Sequence[str] = (), ready: bool = True
    ) -> Haproxy:
        command = [*prefix, str(self.wrapper), "run", "--name", self.name, *options, "--", self.haproxy]
        if self.process is not None:
            self.process.wait(PATIENCE_S)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *(arguments if arguments is not None else ["-Ws", "-f", str(self.template)])],
                env=self.environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if ready:
            wait_until(self.is_up, f"{self.name} is up", log=self.log)
            # The records and the summary agree with HAProxy once 'settle' has seen the worker.
            wait_until(lambda: self.loaded()["settled"], f"the start of {self.name} is settled", log=self.log)
        return self

    def is_up(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            pytest.fail(f"{self.name} ended with {self.process.returncode}\n{self.log()}")
        processes = self.processes()
        # HAProxy 3.1 and later list a worker that still loads, and refuse a reload meanwhile.
        return processes is not None and any(self.master().answers(pid) for pid in processes.serving)

    def master(self) -> Master:
        """Return the master CLI. Raises FileNotFoundError before the start."""
        record = msgspec.json.decode((self.runtime / self.name / "instance.json").read_bytes())
        arguments: list[str] = record["arguments"]
        return Master(arguments[arguments.index("-S") + 1].partition(",")[0])

    def command(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run ``multibinder-haproxy`` to its end."""
        return subprocess.run(
            [str(self.wrapper), *arguments],
            env=self.environment,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def reload(self) -> subprocess.CompletedProcess[str]:
        return self.command("reload", self.name)

    def must_reload(self) -> str:
        done = self.reload()
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.log()}"
        return done.stdout

    def status(self) -> Json:
        done = self.command("status", "--json", self.name)
        status: Json = msgspec.json.decode(done.stdout)
        return status

    def processes(self) -> Processes | None:
        """Ask the master CLI from this process for its processes; None if it does not answer."""
        with contextlib.suppress(FileNotFoundError, Unreachable):
            return self.master().processes()
        return None

    def workers(self) -> list[int]:
        """Return the PIDs of the workers that serve. Waits while the master executes itself again."""
        return wait_until(self.processes, f"the master of {self.name} answers", log=self.log).serving

    def old_workers(self) -> list[int]:
        """Return the PIDs of the workers that a reload replaced and that still have connections."""
        return wait_until(self.processes, f"the master of {self.name} answers", log=self.log).draining

    def loaded(self) -> Json:
        loaded: Json = msgspec.json.decode((self.runtime / self.name / "loaded.json").read_bytes())
        return loaded

    def wait_until_settled(self, generation: int) -> None:
        def settled() -> bool:
            loaded = self.loaded()
            return bool(loaded["generation"] >= generation and loaded["settled"])

        wait_until(settled, f"generation {generation} is settled", log=self.log)

    def wait_until_unlocked(self) -> None:
        """Wait until the end of a load is settled, also of one that failed."""

        def unlocked() -> bool:
            try:
                with (self.runtime / self.name / "lock").open() as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        wait_until(unlocked, f"{self.name} is settled", log=self.log)

    def kill_watcher(self) -> None:
        """Kill the process that waits for the end of a load, as systemd does with the rest of a unit."""
        lock = os.path.realpath(self.runtime / self.name / "lock")
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if lock in descriptors(int(entry.name)).values():
                        os.kill(int(entry.name), signal.SIGKILL)

    def sockets(self, pid: int | None = None) -> dict[int, str]:
        return {number: what for number, what in descriptors(pid or self.pid).items() if what.startswith("socket:")}

    def log(self) -> str:
        return f"--- log of {self.name}:\n{self.log_path.read_text(errors='replace')[-8000:]}"

    def wait_for_log(self, text: str) -> None:
        wait_until(lambda: text in self.log_path.read_text(errors="replace"), f"the log says {text!r}", log=self.log)

    def kill(self) -> None:
        """Send SIGKILL to the master and every worker, as the OOM killer or a wrong script could."""
        victims = [self.pid, *children_of(self.pid)]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        assert self.process is not None
        self.process.wait(PATIENCE_S)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(PATIENCE_S)

    def __enter__(self) -> Haproxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            workers = children_of(self.pid)
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            for pid in workers:
                if Path(f"/proc/{pid}/comm").exists() and "haproxy" in Path(f"/proc/{pid}/comm").read_text():
                    os.kill(pid, signal.SIGKILL)
        if self.log_path.exists():
            sys.stderr.write(self.log())
            if kind is None:
                assert "Traceback" not in self.log(), self.log()


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def wait_for_exit(pid: int) -> None:
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), f"process {pid} has ended")
