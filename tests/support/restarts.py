"""Copies of a server that replace each other while clients connect, and what their clients lost."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tests.support.load import Result
from tests.support.processes import children
from tests.support.waiting import wait_until

#: How long a client waits for its answer, in seconds. A machine that is busy with other tests starts servers slowly.
PATIENCE_S = 20
#: How long each copy serves, beside the next one and alone, in seconds.
SERVES_S = 0.3
#: A server that does not end by itself after its stop signal within this time, in seconds, is killed.
ENDS_S = 15.0


class Way(Enum):
    """A way to restart a server."""

    OVERLAP = "the next copy is ready before the old one is stopped"
    STOP_THEN_START = "the old one has ended before the next copy is started"
    BUSY_STOP = "the same, and the old one has a queue of clients when it gets SIGTERM"
    RELOAD = "multibinder reload of an instance of multibinder run"
    OWN = "the daemon replaces itself in its own way"


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

    @classmethod
    def of(cls, seen: Result, ends: list[str], logs: Sequence[str]) -> Outcome:
        total = seen.total
        log = "\n".join(logs)
        return cls(total.tried, total.failed, total.causes, total.longest_wait_s, len(total.bodies), ends, log)

    def __str__(self) -> str:
        causes = "".join(f"{cause}: {count}, " for cause, count in sorted(self.causes.items()))
        ends = ", ".join(sorted(set(self.ends)))
        return (
            f"{self.lost} of {self.tried} lost ({causes}longest wait {self.longest_wait_s:.2f} s, exit status {ends})"
        )

    def complaints(self) -> list[str]:
        """Return some lines of the log about errors."""
        return sorted(set(re.findall(r"^.*(?:Traceback|Error\b|WARNING|Warning).*$", self.log, re.MULTILINE)))[:5]


@dataclass(frozen=True, slots=True)
class Start:
    """How a copy is started, and stopped.

    The copy is ready when ``is_ready`` says so of it; ``environment`` is all of its environment.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    is_ready: Callable[[Copy], bool]
    directory: Path | None = None
    stop_signal: signal.Signals = signal.SIGTERM


def has_said(text: str, times: int = 1) -> Callable[[Copy], bool]:
    """Return the check that the output of a copy has had a text so often."""
    return lambda copy: copy.log().count(text) >= times


class Copy:
    """One copy of a server, which is ready when the constructor returns."""

    def __init__(self, start: Start, log_path: Path) -> None:
        self._start, self._log_path = start, log_path
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                start.command,
                env=dict(start.environment),
                cwd=start.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self._is_ready, f"{start.name} is ready", log=self.log)
        except BaseException:
            self.kill()
            raise

    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"{self._start.name} ended with {self.process.returncode}:\n{self.log()}")
        return self._start.is_ready(self)

    def stop(self, *, held_up_s: float = 0.0) -> str:
        """Send the stop signal and wait until the server has ended. Return its exit status, or ``killed``.

        For ``held_up_s`` seconds before, it and its workers do not run (SIGSTOP), and clients queue up.
        """
        if held_up_s:
            os.killpg(self.process.pid, signal.SIGSTOP)
            threading.Event().wait(held_up_s)
        self.process.send_signal(self._start.stop_signal)
        if held_up_s:
            os.killpg(self.process.pid, signal.SIGCONT)
        try:
            return str(self.process.wait(ENDS_S))
        except subprocess.TimeoutExpired:
            return "killed"
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill the server and its workers, if any of them still runs.

        The copies of ``multibinder run`` are children with sessions of their own, so that each is a group of processes.
        """
        groups = [self.process.pid]
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            groups += children(self.process.pid)
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self.process.wait()


class Copies:
    """The running copies of a server, the oldest first. Their logs are in ``directory``."""

    def __init__(self, start: Start, directory: Path) -> None:
        self._start, self._directory = start, directory
        self._running: list[Copy] = []
        self.ends: list[str] = []
        self.logs: list[str] = []

    def start(self) -> Copy:
        number = len(self._running) + len(self.ends)
        self._running.append(Copy(self._start, self._directory / f"copy-{number}"))
        return self._running[-1]

    def stop(self, *, held_up_s: float = 0.0) -> None:
        copy = self._running.pop(0)
        self.ends.append(copy.stop(held_up_s=held_up_s))
        self.logs.append(copy.log())

    def kill(self) -> None:
        for copy in self._running:
            copy.kill()

    def restart(self, way: Way, *, held_up_s: float = 0.0) -> None:
        """Replace the running copy by the next one, which serves for a moment alone."""
        pause = threading.Event()
        if way is Way.OVERLAP:
            self.start()
            pause.wait(SERVES_S)
            self.stop()
        else:
            self.stop(held_up_s=held_up_s)
            self.start()
        pause.wait(SERVES_S)


@contextlib.contextmanager
def copies(start: Start, directory: Path) -> Iterator[Copies]:
    """Yield the copies of a server, and kill at the end those that still run."""
    running = Copies(start, directory)
    try:
        yield running
    finally:
        running.kill()
