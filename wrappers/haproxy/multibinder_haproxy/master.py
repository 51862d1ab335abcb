"""HAProxy's master CLI (management guide, "Master CLI")."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection

import msgspec

from multibinder.kernel import process
from multibinder.launch.errors import NotRunning
from multibinder_haproxy.errors import ReloadFailed

_POLL_S = 0.02


class Worker(msgspec.Struct, frozen=True):
    """A worker as ``show proc`` lists it. ``reloads`` counts the reloads since it was started."""

    pid: int
    reloads: int
    version: str


class Processes(msgspec.Struct, frozen=True):
    """The answer of ``show proc``: the master and its workers.

    ``reloads`` counts the master's reloads, ``failed`` those that failed since the last success.
    """

    master: int
    version: str
    reloads: int
    failed: int
    workers: list[Worker]
    old_workers: list[Worker]

    @property
    def serving(self) -> list[int]:
        """Return the workers that accept connections."""
        # HAProxy from 3.1 on lists the worker that serves on after a failed reload as an old one.
        return [worker.pid for worker in self.workers or self.old_workers[:1]]

    @property
    def draining(self) -> list[int]:
        """Return the older workers, which finish their connections."""
        return [worker.pid for worker in (self.old_workers if self.workers else self.old_workers[1:])]


class Master:
    """Talks to the master CLI at ``path``; each call is one connection. Raises NotRunning if no master answers."""

    def __init__(self, path: str) -> None:
        self.path = path

    def ask(self, command: str, timeout_s: float = 5.0) -> str:
        """Return the answer to one command; it is empty if the master re-executes itself instead of answering."""
        deadline = time.monotonic() + timeout_s
        answer = b""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            try:
                sock.settimeout(timeout_s)
                sock.connect(self.path)
                sock.sendall(command.encode() + b"\n")
                # HAProxy answers what it has and closes when the client says that it will not ask again.
                sock.shutdown(socket.SHUT_WR)
                while chunk := self._receive(sock, deadline):
                    answer += chunk
            except TimeoutError as error:
                raise NotRunning(
                    f"HAProxy's master at {self.path} did not answer '{command}' in {timeout_s:g} s"
                ) from error
            except ConnectionResetError:
                pass
            except OSError as error:
                raise NotRunning(f"HAProxy's master does not answer at {self.path}: {error.strerror}") from error
        return answer.decode(errors="replace")

    def processes(self) -> Processes:
        answer = self.ask("show proc")
        processes = parse_processes(answer)
        if processes is None:
            raise NotRunning(f"HAProxy's master at {self.path} gave no list of processes: {answer[:80]!r}")
        return processes

    def reload(self, timeout_s: float) -> str:
        """Ask for a reload, and return HAProxy's answer.

        HAProxy 2.7 and later answer at the end of the reload. After an empty answer, ``processes`` tells how it ends.
        Raises ReloadFailed with HAProxy's own words.
        """
        answer = self.ask("reload", timeout_s)
        head, _, log = answer.partition("--\n")
        if head.startswith("Success=0"):
            raise ReloadFailed(log.strip() or "HAProxy says no more")
        return answer

    def await_new_worker(
        self, old_workers: Collection[int], deadline: float, master_alive: Callable[[], bool]
    ) -> list[Worker]:
        """Wait for the workers of a reload, and return them once they answer. Their PIDs are not in ``old_workers``.

        ``deadline`` is on time.monotonic(). Raises ReloadFailed if HAProxy gave up, TimeoutError at the deadline,
        NotRunning if the master is gone.
        """
        while time.monotonic() < deadline:
            try:
                processes = self.processes()
            except NotRunning:
                if not master_alive():
                    raise
                processes = None  # it is re-executing itself
            if processes is not None:
                # While HAProxy 3 still loads, its new worker is in the list, but does not answer yet.
                new = [worker for worker in processes.workers if not worker.reloads and worker.pid not in old_workers]
                if new and all(self._answers(worker.pid) for worker in new):
                    return new
                if processes.failed and not new:
                    raise ReloadFailed(self._startup_log())
            time.sleep(_POLL_S)
        raise TimeoutError

    def _startup_log(self) -> str:
        """Return the log of the worker that failed to start. HAProxy's master has it from 2.7 on."""
        try:
            log = self.ask("show startup-logs").strip()
        except NotRunning:
            log = ""
        return log if log.startswith("[") else "HAProxy counts a failed reload; its log says why"

    def _answers(self, pid: int) -> bool:
        try:
            return f"Pid: {pid}\n" in self.ask(f"@!{pid} show info", timeout_s=1.0)
        except NotRunning:
            return False

    def _receive(self, sock: socket.socket, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)
        return sock.recv(65536)


def parse_processes(text: str) -> Processes | None:
    """Read the answer of ``show proc``; None if ``text`` is something else."""
    section = ""
    master = None
    workers: dict[str, list[Worker]] = {"# workers": [], "# old workers": []}
    for line in text.splitlines():
        words = line.split()
        if line.startswith("#"):
            section = line.strip()
        elif len(words) > 3 and words[1] == "master":
            # "0 [failed: 1]": the count of failures is there from 2.6 on
            failed = int(words[4].rstrip("]")) if words[3] == "[failed:" else 0
            master = (int(words[0]), words[-1], int(words[2]), failed)
        elif len(words) > 4 and words[1] == "worker" and section in workers:
            workers[section].append(Worker(int(words[0]), int(words[2]), words[4]))
    if master is None:
        return None
    # From 3.1 on the only worker left after a failed reload is listed as an old one.
    return Processes(*master, workers["# workers"], workers["# old workers"])


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment with which HAProxy's master was last executed.

    Raises NotRunning if it is gone, or we may not read it.
    """
    try:
        return process.environment_of(pid)
    except OSError as error:
        raise NotRunning(f"cannot read the environment of HAProxy's master (pid {pid}): {error.strerror}") from error
