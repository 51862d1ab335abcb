"""Measure what ``multibinder run`` adds to the time of a restart, beside the server's own start, and its memory.

    python -m benchmarks.run

The server is a small one in Python. Its own start is the time until it says READY=1 when it is started without ``run``.
After a SIGKILL, a client that connects at once waits until the next copy answers. A reload is over when the new copy is
ready and the old one has ended; with a file of settings, an interpreter reads it first. The time for which the new copy
must be ready (--stable-for) is 0 here. Times are medians of runs that take turns.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

import multibinder
from benchmarks import rig
from multibinder.launch.run.report import Answer, Command, Progress, Request

#: The aims: resident memory of an idle 'run', the time that it adds, and wake-ups in ten seconds.
MEMORY_AIM_KIB = 16 * 1024
ADDED_AIM_S = 0.05
WAKEUPS_AIM = 1

_IDLE_S = 10
_HOST = "127.1.2.5"
_FOREIGN_VARIABLES = ("MULTIBINDER_", "LISTEN_", "NOTIFY_SOCKET", "JOURNAL_STREAM")
_SERVER = """
import os, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
listener = socket.socket(fileno=3)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
while True:
    client, _ = listener.accept()
    with client:
        client.sendall(b"%d" % os.getpid())
"""


class Run:
    """A ``multibinder run`` with one copy of the server, at ``port``. A context manager."""

    def __init__(self, directory: Path, control: Path, name: str, port: int, *, has_file: bool) -> None:
        self.address = (_HOST, port)
        self._socket_path = directory / "run" / name / "control.sock"
        options = ["--stable-for", "0", "--ready-notify", "-b", f"{_HOST}:{port}"]
        command = [sys.executable, "-I", "-c", _SERVER]
        if has_file:
            file = directory / f"{name}.toml"
            content = {"stable-for": 0, "ready-notify": True, "bind": [f"{_HOST}:{port}"], "command": command}
            file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in content.items()))
            options, command = ["--config", str(file)], []
        self.process = subprocess.Popen(
            [
                sys.executable, "-P", "-m", "multibinder", "run", "--name", name, "--runtime-dir", directory / "run",
                "--socket", control, *options, *(["--", *command] if command else []),
            ],
            cwd=directory, env=environment(), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def __enter__(self) -> Run:
        rig.wait_until(self._is_ready, self.process)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(rig.PATIENCE_S)

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return bool((status := self.ask("status").status) and status.state == "running")
        return False

    def ask(self, command: Command) -> Answer:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self._socket_path))
            sock.sendall(msgspec.json.encode(Request(command)) + b"\n")
            with sock.makefile("rb") as lines:
                for line in lines:
                    message = msgspec.json.decode(line, type=Answer | Progress)
                    if isinstance(message, Answer):
                        return message
        sys.exit(f"'multibinder run' ended, with code {self.process.wait(rig.PATIENCE_S)}")

    def crash(self) -> float:
        """Return the seconds from a SIGKILL of the copy to the answer of the next one. A second crash backs off."""
        os.kill(self._answer(), signal.SIGKILL)
        began = time.perf_counter()
        self._answer()
        return time.perf_counter() - began

    def reload(self) -> float:
        """Return the seconds of a reload."""
        began = time.perf_counter()
        report = self.ask("reload").report
        took = time.perf_counter() - began
        if report is None or not report.ok:
            sys.exit(f"a reload failed: {report}")
        return took

    def _answer(self) -> int:
        with (
            contextlib.suppress(ConnectionResetError),
            socket.create_connection(self.address, rig.PATIENCE_S) as client,
        ):
            return int(client.recv(64) or 0)
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=rig.summary_of(__doc__))
    parser.add_argument("--runs", type=int, default=30, help="runs of each; the default is 30")
    runs = parser.parse_args().runs
    # As an installation has it, also where PYTHONDONTWRITEBYTECODE is set.
    compileall.compile_dir(Path(multibinder.__file__).parent, quiet=1)
    with rig.directory() as directory, contextlib.ExitStack() as running:
        control = directory / "control.sock"
        running.enter_context(rig.binder(control))
        plain, with_file = (
            running.enter_context(Run(directory, control, name, port, has_file=name == "file"))
            for name, port in (("plain", 8001), ("file", 8002))
        )

        def crash() -> float:
            with Run(directory, control, "crash", 8000, has_file=False) as run:
                return run.crash()

        own = "the server's own start"
        own_start = running.enter_context(alone(directory))
        ways: dict[str, Callable[[], float]] = {
            own: own_start,
            "a client after SIGKILL of the copy": crash,
            "a reload": plain.reload,
            "a reload with a file of settings": with_file.reload,
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(runs):
            for way, take in ways.items():
                times[way].append(take())
        base = statistics.median(times[own])
        for way, seconds in times.items():
            added = statistics.median(seconds) - base
            line = f"{way:<40}{statistics.median(seconds) * 1000:>8.1f} ms"
            if way != own:
                line += f"{added * 1000:>8.1f} ms added"
            if way == "a reload":
                line += f"   {rig.verdict(added <= ADDED_AIM_S, f'{ADDED_AIM_S * 1000:g} ms')}"
            print(line)
        memory(plain.process.pid)


def memory(pid: int) -> None:
    """Print the resident memory of an idle ``run``, and how often it wakes up."""
    before = rig.status_field(pid, "voluntary_ctxt_switches")
    time.sleep(_IDLE_S)
    wakeups = rig.status_field(pid, "voluntary_ctxt_switches") - before
    resident, private = (rig.status_field(pid, key) for key in ("VmRSS", "RssAnon"))
    print(
        f"memory of run: {resident:,} KiB resident, {private:,} KiB of it private"
        f"   {rig.verdict(resident <= MEMORY_AIM_KIB, f'{MEMORY_AIM_KIB:,} KiB')}"
    )
    print(f"wake-ups of run in {_IDLE_S} s: {wakeups}   {rig.verdict(wakeups <= WAKEUPS_AIM, str(WAKEUPS_AIM))}")


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[Callable[[], float]]:
    """Give a function that returns the seconds from the start of the server to its READY=1."""
    path = directory / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, socket.create_server((_HOST, 0)) as listener:
        notify.bind(str(path))
        notify.settimeout(rig.PATIENCE_S)

        def take() -> float:
            begin = f"import os; os.dup2({listener.fileno()}, 3)\n"
            began = time.perf_counter()
            server = subprocess.Popen(
                [sys.executable, "-I", "-c", begin + _SERVER],
                env={**environment(), "NOTIFY_SOCKET": str(path)}, pass_fds=[listener.fileno()],
            )  # fmt: skip
            notify.recv(64)
            took = time.perf_counter() - began
            server.terminate()
            server.wait(rig.PATIENCE_S)
            return took

        yield take


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN_VARIABLES)}


if __name__ == "__main__":
    main()
