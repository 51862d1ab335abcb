"""Restart a server again and again under load, and count what its clients lose.

``python -m tests.frameworks.campaign`` does so for the rows of the table, and prints what it saw. Its exit status is 1
if a server lost a client that is started and stopped as docs/frameworks.md says.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import multibinder
from multibinder.pytest_plugin import RunningBinder, running_binder
from tests.frameworks.rows import BARE, ROWS, SERVERS, Row
from tests.frameworks.tls_load import TlsLoad, certificate
from tests.support.commands import clean_environment
from tests.support.load import Load
from tests.support.waiting import wait_until

#: ``make frameworks`` installs the packages here.
PACKAGES = Path(__file__).parents[2] / ".venv" / "frameworks"
#: New connections a second.
RATE = 200
#: How long a client waits for its answer, in seconds. A machine that is busy with other tests starts servers slowly.
PATIENCE_S = 20
#: How long each copy serves, beside the next one and alone, in seconds.
SERVES_S = 0.3
#: A server that does not end by itself after SIGTERM within this time, in seconds, is killed.
ENDS_S = 15.0
#: A server that is held up for so many seconds has a queue of 40 clients.
HELD_UP_S = 0.2


class Way(Enum):
    """A way to restart a server."""

    OVERLAP = "the next copy is ready before the old one is stopped"
    STOP_THEN_START = "the old one has ended before the next copy is started"
    BUSY_STOP = "the same, and the old one has a queue of clients when it gets SIGTERM"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen in some restarts.

    ``copies`` is how many processes have answered, ``ends`` the exit status of each server, or ``killed``. ``log`` is
    the output of all.
    """

    tried: int
    lost: int
    causes: dict[str, int]
    longest_wait_s: float
    copies: int
    ends: list[str]
    log: str

    def __str__(self) -> str:
        causes = "".join(f"{cause}: {count}, " for cause, count in sorted(self.causes.items()))
        ends = ", ".join(sorted(set(self.ends)))
        return (
            f"{self.lost} of {self.tried} lost ({causes}longest wait {self.longest_wait_s:.2f} s, exit status {ends})"
        )

    def complaints(self) -> list[str]:
        """Return some lines of the log about errors."""
        return sorted(set(re.findall(r"^.*(?:Traceback|Error\b|WARNING|Warning).*$", self.log, re.MULTILINE)))[:5]


@functools.cache
def version(package: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    path = [str(PACKAGES), *sys.path]
    found = next(iter(importlib.metadata.distributions(name=package, path=path)), None)
    return None if found is None else found.version


def missing(row: Row) -> list[str]:
    """Return the packages of a row that are not installed."""
    return [package for package in row.packages if version(package) is None]


class Server:
    """One copy of a server, which is ready when the constructor returns."""

    def __init__(self, row: Row, port: int, directory: Path, socket_path: Path) -> None:
        self._row = row
        self._log_path = directory / f"server-{len(list(directory.glob('server-*')))}"
        path = [str(PACKAGES), str(SERVERS), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {
            **{name: value.replace("PORT", str(port)) for name, value in row.environment.items()},
            "CERTIFICATE": str(directory / "certificate.pem"),
            multibinder.SOCKET_VARIABLE: str(socket_path),
            "PYTHONPATH": os.pathsep.join(path),
        }
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                row.command(port),
                env=clean_environment(variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self._is_ready, f"{row.name} is ready", log=self.log)
        except BaseException:
            self.kill()
            raise

    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"{self._row.name} ended with {self.process.returncode}:\n{self.log()}")
        return self.log().count(self._row.ready) >= self._row.times

    def stop(self, *, held_up_s: float = 0.0) -> str:
        """Send SIGTERM and wait until the server has ended. Return its exit status, or ``killed``.

        For ``held_up_s`` seconds before, it and its workers do not run (SIGSTOP), and clients queue up.
        """
        if held_up_s:
            os.killpg(self.process.pid, signal.SIGSTOP)
            threading.Event().wait(held_up_s)
        self.process.terminate()
        if held_up_s:
            os.killpg(self.process.pid, signal.SIGCONT)
        try:
            return str(self.process.wait(ENDS_S))
        except subprocess.TimeoutExpired:
            return "killed"
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill the server and its workers, if any of them still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Copies:
    """The running copies of a server, the oldest first."""

    def __init__(self, row: Row, port: int, directory: Path, socket_path: Path) -> None:
        self._of_each = (row, port, directory, socket_path)
        self._running: list[Server] = []
        self.ends: list[str] = []
        self.logs: list[str] = []

    def start(self) -> None:
        self._running.append(Server(*self._of_each))

    def stop(self, *, held_up_s: float = 0.0) -> None:
        server = self._running.pop(0)
        self.ends.append(server.stop(held_up_s=held_up_s))
        self.logs.append(server.log())

    def kill(self) -> None:
        for server in self._running:
            server.kill()


@contextlib.contextmanager
def copies(row: Row, port: int, directory: Path, socket_path: Path) -> Iterator[Copies]:
    """Yield the copies of a server, and kill at the end those that still run."""
    running = Copies(row, port, directory, socket_path)
    try:
        yield running
    finally:
        running.kill()


def restart(row: Row, rounds: int, way: Way, *, directory: Path, binder: RunningBinder) -> Outcome:
    """Restart a server under load. ``directory`` is for logs; the binder has the kernel choose the port."""
    with multibinder.bind("127.0.0.1", 0, socket_path=binder.socket_path) as listener:
        target = ("127.0.0.1", listener.getsockname()[1])
    if row.is_tls:
        certificate(directory / "certificate.pem")
    pause = threading.Event()
    with copies(row, target[1], directory, binder.socket_path) as servers:
        servers.start()
        with _load(row, target) as load:
            pause.wait(SERVES_S)
            for _ in range(rounds):
                if way is Way.OVERLAP:
                    servers.start()
                    pause.wait(SERVES_S)
                    servers.stop()
                else:
                    servers.stop(held_up_s=HELD_UP_S if way is Way.BUSY_STOP else 0.0)
                    servers.start()
                pause.wait(SERVES_S)
            seen = load.stop().total
        servers.stop()
    log = "\n".join(servers.logs)
    return Outcome(seen.tried, seen.failed, seen.causes, seen.longest_wait_s, len(seen.bodies), servers.ends, log)


def _load(row: Row, target: tuple[str, int]) -> Load | TlsLoad:
    if row.is_tls:
        return TlsLoad(target, rate=RATE, timeout_s=PATIENCE_S)
    return Load([target], rate=RATE, timeout_s=PATIENCE_S, bodies=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Restart the servers of docs/frameworks.md under load.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only rows whose name has this part")
    parser.add_argument("--rounds", type=int, default=10, help="restarts in each way (%(default)s)")
    parser.add_argument("--logs", type=Path, metavar="DIRECTORY", help="write the output of the servers there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))  # which ends the servers too
    lost = 0
    for row in ROWS:
        if options.names and not any(part.lower() in row.name.lower() for part in options.names):
            continue
        if absent := missing(row):
            print(f"{row.name}: skipped, {', '.join(absent)} not installed")
            continue
        versions = [f"{package} {version(package)}" for package in row.packages]
        print(f"{row.name} ({', '.join([f'Python {platform.python_version()}', *versions])})", flush=True)
        for way in Way:
            with tempfile.TemporaryDirectory(prefix="mb-") as directory, running_binder() as binder:
                outcome = restart(row, options.rounds, way, directory=Path(directory), binder=binder)
            lost += 0 if row.name.endswith(BARE) else outcome.lost
            lines = [f"{way.name.lower().replace('_', ' '):15}  {outcome}", *outcome.complaints()]
            print("".join(f"    {line}\n" for line in lines), end="", flush=True)
            if options.logs:
                options.logs.mkdir(parents=True, exist_ok=True)
                (options.logs / f"{row.name} {way.name}").write_text(outcome.log)
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
