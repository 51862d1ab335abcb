"""HAProxy's master CLI (management guide, "Master CLI")."""

from __future__ import annotations

import contextlib
import csv
import socket
import time
from collections.abc import Callable, Collection

from multibinder.kernel import process
from multibinder.launch.errors import NotAnswering, NotRunning, Unreachable
from multibinder_haproxy.errors import ReloadFailed
from multibinder_haproxy.show_proc import Processes, parse_processes

__all__ = ["Master", "Processes", "environment_of"]

_POLL_S = 0.02
#: The first and the longest time for one of several tries to get an answer. A connection that is made while the master
#: executes itself may be accepted by no process: a ``program`` section's process keeps a copy of the listener.
_FIRST_TRY_S, _LONGEST_TRY_S = 0.25, 2.0
#: After this time without an answer to ``reload``, the list of processes is asked whether the reload has ended.
_SILENCE_S = 1.0
_BUSY_S = 0.1


class Master:
    """Talks to the master CLI at ``path``; each question is one connection.

    ``find_pid`` returns the PID of the instance's master, or None if there is none. The methods raise NotAnswering if
    it runs and does not answer, and NotRunning if it does not run. Without ``find_pid``, a socket on which no process
    listens counts as not running.
    """

    def __init__(self, path: str, find_pid: Callable[[], int | None] | None = None) -> None:
        self.path = path
        self._find_pid = find_pid

    def ask(self, command: str, timeout_s: float = 5.0) -> str:
        """Return the answer to one command; it is empty if the master re-executes itself instead of answering."""
        return self._ask(command, timeout_s, lambda: False)

    def processes(self, timeout_s: float = 5.0) -> Processes:
        """Ask for the list of processes. Tries several times within ``timeout_s`` while the master runs."""
        deadline = time.monotonic() + timeout_s
        try_s = _FIRST_TRY_S
        reason = f"no list of processes in {timeout_s:g} s"
        while True:
            with contextlib.suppress(NotAnswering):
                answer = self.ask("show proc", max(_POLL_S, min(try_s, deadline - time.monotonic())))
                if processes := parse_processes(answer):
                    return processes
                if answer:
                    reason = f"no list of processes, but {answer[:80]!r}"
            # An empty answer: the master re-executes itself.
            if time.monotonic() + _POLL_S >= deadline:
                raise self._unreachable(reason, connected=True)
            try_s = min(2 * try_s, _LONGEST_TRY_S)
            time.sleep(_POLL_S)

    def reload(self, timeout_s: float, old_workers: Collection[int] | None = None) -> str:
        """Ask for a reload, and return HAProxy's answer.

        HAProxy 2.7 and later answer at the end of the reload, but for a configuration with ``resetenv``, which makes
        them forget who asked. If ``old_workers`` is given, which are those before the reload, the list of processes is
        asked too, so that such a reload does not wait for an answer. After an empty answer, ``processes`` tells how it
        ends. Raises ReloadFailed with HAProxy's own words.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self._ask(
                "reload", deadline - time.monotonic(), lambda: old_workers is not None and self._has_ended(old_workers)
            )
            head, _, log = answer.partition("--\n")
            if not head.startswith("Success=0"):
                return answer
            # HAProxy 3.1 and later refuse a reload while a worker loads.
            if "Another reload is still in progress" not in log or time.monotonic() + _BUSY_S >= deadline:
                raise ReloadFailed(log.strip() or "HAProxy says no more")
            time.sleep(_BUSY_S)

    def startup_log(self) -> str:
        """Return the log of the worker that failed to start. HAProxy's master has it from 2.7 on."""
        try:
            log = self.ask("show startup-logs").strip()
        except Unreachable:
            log = ""
        return log if log.startswith("[") else "HAProxy counts a failed reload; its log says why"

    def answers(self, pid: int, timeout_s: float = 1.0) -> bool:
        """Return whether a worker answers now."""
        return bool(self._information_of(pid, timeout_s))

    def answering_workers(self, timeout_s: float = 2.0) -> list[int] | None:
        """Return the workers that answer now, and that do not end once their connections have ended.

        None if the master does not answer, so that it cannot be told. Raises nothing.
        """
        deadline = time.monotonic() + timeout_s
        try:
            processes = self.processes(timeout_s)
        except NotRunning:
            return []
        except Unreachable:
            return None
        pids = [worker.pid for worker in (*processes.workers, *processes.old_workers)]
        return [pid for pid in pids if "\nStopping: 0\n" in self._information_of(pid, deadline - time.monotonic())]

    def closed_frontends(self, pid: int, timeout_s: float = 2.0) -> list[str]:
        """Return the frontends in which a worker accepts nothing, because its CLI was told so.

        In ``show stat`` they are PAUSED by ``disable frontend``, or STOP by ``shutdown frontend``. The list is empty if
        the worker does not answer.
        """
        try:
            header, *rows = self.ask(f"@!{pid} show stat -1 1 -1", timeout_s).removeprefix("# ").strip().splitlines()
        except (Unreachable, ValueError):
            return []
        found = csv.DictReader(rows, fieldnames=header.split(","))
        return [row["pxname"] for row in found if row.get("status") in ("PAUSED", "STOP")]

    def _information_of(self, pid: int, timeout_s: float) -> str:
        """Return a worker's answer to ``show info``; empty if it does not answer."""
        if timeout_s <= 0:
            return ""
        try:
            answer = self.ask(f"@!{pid} show info", timeout_s)
        except Unreachable:
            return ""
        return answer if f"\nPid: {pid}\n" in answer else ""

    def _has_ended(self, old_workers: Collection[int]) -> bool:
        """Return whether a load has ended, as the list of processes tells."""
        try:
            processes = self.processes(timeout_s=1.0)
        except Unreachable:
            return False
        new = processes.new_workers(old_workers)
        return processes.gave_up(old_workers) or (bool(new) and all(self.answers(pid) for pid in new))

    def _ask(self, command: str, timeout_s: float, has_ended: Callable[[], bool]) -> str:
        """Return the answer to one command. While nothing arrives, ``has_ended`` is asked whether to wait no longer."""
        deadline = time.monotonic() + timeout_s
        answer = b""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            try:
                sock.settimeout(timeout_s)
                sock.connect(self.path)
                sock.sendall(command.encode() + b"\n")
                # HAProxy answers what it has and closes when the client says that it will not ask again.
                sock.shutdown(socket.SHUT_WR)
                while (left := deadline - time.monotonic()) > 0:
                    sock.settimeout(min(left, _SILENCE_S))
                    try:
                        chunk = sock.recv(65536)
                    except TimeoutError:
                        if has_ended():
                            chunk = b""
                        else:
                            continue
                    if not chunk:
                        return answer.decode(errors="replace")
                    answer += chunk
                raise TimeoutError
            except (TimeoutError, BlockingIOError) as error:  # BlockingIOError: the accept queue is full
                raise self._unreachable(f"no answer to '{command}' in {timeout_s:g} s", connected=True) from error
            except (ConnectionResetError, BrokenPipeError):
                return answer.decode(errors="replace")
            except OSError as error:
                raise self._unreachable(error.strerror or str(error), connected=False) from error

    def _unreachable(self, reason: str, *, connected: bool) -> Unreachable:
        """Return the error for a question that has no answer. ``connected``: a process listens on the socket."""
        pid = self._find_pid() if self._find_pid is not None else None
        if pid is None and (self._find_pid is not None or not connected):
            return NotRunning(f"HAProxy does not run: its master does not answer at {self.path}: {reason}")
        master = f"HAProxy's master (pid {pid})" if pid is not None else "HAProxy's master"
        return NotAnswering(
            f"{master} runs, but does not answer at {self.path}: {reason}; it loads its configuration, other clients "
            "have all ten connections of its CLI, or it hangs: its log and 'ss -xp' tell"
        )


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment with which HAProxy's master was last executed.

    Raises NotRunning if it is gone, or we may not read it.
    """
    try:
        return process.environment_of(pid)
    except OSError as error:
        raise NotRunning(f"cannot read the environment of HAProxy's master (pid {pid}): {error.strerror}") from error
