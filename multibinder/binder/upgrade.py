"""The rehearsal of an upgrade: run the new code in a child process before it replaces the running code.

A running binder of version 0.1.0 imports ``Rehearsal`` only when it is asked to upgrade, and then gets this module, not
its own. So this module may import nothing of ours but ``Loop``, which such a binder has loaded.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
from collections.abc import Callable, Mapping, Sequence

from multibinder.binder.loop import Loop

#: The new code must be ready within this time. It ends itself by SIGALRM.
REHEARSAL_S = 30
#: The process is killed after this time: a SIGALRM may be blocked or ignored by what the new code imports.
KILL_S = REHEARSAL_S + 2
#: The environment variable that has the nonce. The new code prints it with its version when everything has succeeded.
NONCE = "MULTIBINDER_REHEARSAL"
#: The first word of that line.
WORD = "multibinder-rehearsed"
#: The first word of another line, after which the nonce and what the new code can hold follow. A version before that
#: line knows TCP alone.
KNOWS = "multibinder-knows"
_KNOWN_BEFORE = frozenset({"tcp"})
#: A version before this protocol prints its version alone.
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)+[0-9A-Za-z.+!-]*")
_OUTPUT_BYTES = 65536
#: A killed process is reaped within this time, or not at all.
_REAP_S = 1.0


class Rehearsal:
    """A child process with the new code. It tries what a start needs, and prints its version.

    ``command`` is the binder's own: python, options, -m, module, settings. ``tell`` is called from the loop with the
    version of the new code, or with None and the reason why it cannot be used. ``environment`` is added to that of the
    child. Raises OSError if the process cannot be started.

    The rehearsal succeeds only if the new code says so: by a line with the nonce of this rehearsal. An older version
    knows no nonce. Its line is its version alone, and is believed only with the exit status 0.
    """

    def __init__(
        self,
        loop: Loop,
        command: Sequence[str],
        tell: Callable[[str | None, str], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._loop = loop
        self._tell: Callable[[str | None, str], None] | None = tell
        self._output = b""
        self._nonce = os.urandom(16).hex()
        #: What the new code can hold, if the rehearsal succeeded: kinds of sockets, and ``shards`` and ``netns``.
        self.known = _KNOWN_BEFORE
        program, *options, _, module, settings = command
        code = f"import signal; signal.alarm({REHEARSAL_S}); import {module} as binder; binder.rehearse()"
        variables = {**os.environ, **(environment or {}), NONCE: self._nonce}
        self._pid = self._pipe = self._pidfd = -1
        try:
            self._pipe, writing = os.pipe2(os.O_CLOEXEC)
            try:
                os.set_blocking(self._pipe, False)
                self._pid = _spawn([program, *options, "-c", code, settings], variables, writing)
            finally:
                os.close(writing)
            self._pidfd = os.pidfd_open(self._pid)
            loop.watch(self._pipe, self._read)
            loop.watch(self._pidfd, self._end)
        except OSError:
            self.stop()
            raise
        loop.call_later(KILL_S, self._kill_overdue)

    def stop(self) -> None:
        """Kill the process and reap it. ``tell`` is not called any more."""
        self._tell = None
        if self._pid > 0:
            self._kill()
            if self._pidfd >= 0:
                # A process that the kernel cannot end at once must not hold us up.
                poll = select.poll()
                poll.register(self._pidfd, select.POLLIN)
                poll.poll(_REAP_S * 1000)
            _wait(self._pid, os.WNOHANG if self._pidfd >= 0 else 0)
            self._pid = -1
        self._close()

    def _read(self) -> None:
        """Read all that has arrived."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._pipe, _OUTPUT_BYTES):
                self._output = (self._output + chunk)[-_OUTPUT_BYTES:]
            self._loop.unwatch(self._pipe)

    def _end(self) -> None:
        """Judge the rehearsal: its process has ended.

        Another process that it started may still have the pipe open, so the end of the pipe is not waited for.
        """
        self._read()
        self._kill()  # what it has started; its own PID is not free before it is reaped
        status = _wait(self._pid)
        self._pid = -1
        self._close()
        self._report(*self._judge(status))

    def _judge(self, status: int | None) -> tuple[str | None, str]:
        lines = [line.strip() for line in self._output.decode(errors="replace").splitlines() if line.strip()]
        last = lines[-1] if lines else ""
        if status == -signal.SIGALRM:
            return None, _too_late()
        if status not in (0, None):
            if status < 0 and not last:
                return None, f"it was ended by signal {-status}"
            return None, last or f"it exited with {status}"
        word = f"{WORD} {self._nonce} "
        knows = f"{KNOWS} {self._nonce} "
        for line in lines:
            if line.startswith(knows):
                self.known = frozenset(line.removeprefix(knows).split())
        said = [line.removeprefix(word) for line in lines if line.startswith(word)]
        if said:
            return said[0], ""
        if status == 0 and _VERSION.fullmatch(last) and sum(bool(_VERSION.fullmatch(line)) for line in lines) == 1:
            return last, ""
        return None, last or "it ended without saying that it can start"

    def _kill_overdue(self) -> None:
        if self._pid > 0:
            # The process is reaped when it has ended. A process that cannot be killed at once must not hold us up.
            self._kill()
            self._report(None, _too_late())

    def _report(self, version: str | None, why: str) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(version, why)

    def _kill(self) -> None:
        """Kill the process, and those that it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)

    def _close(self) -> None:
        for descriptor in (self._pipe, self._pidfd):
            if descriptor >= 0:
                self._loop.unwatch(descriptor)
                os.close(descriptor)
        self._pipe = self._pidfd = -1


def _too_late() -> str:
    return f"it did not start within {REHEARSAL_S} s"


def _spawn(command: list[str], environment: Mapping[str, str], output: int) -> int:
    """Start a process with no input, whose output and error messages go to a pipe. Return its PID.

    It is the first process of its own group, so that it can be killed with all that it has started. The module
    ``subprocess`` would be loaded for this alone, and stay in memory for the daemon's life.
    """
    return os.posix_spawn(
        command[0],
        command,
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ],
        setpgroup=0,
        setsigmask=(),
        # Python ignores SIGPIPE and SIGXFSZ. The program that started us may have made us ignore the others.
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGALRM, signal.SIGCHLD, signal.SIGTERM, signal.SIGINT],
    )


def _wait(pid: int, options: int = 0) -> int | None:
    """Reap a process that has ended, and return its exit status.

    Return None if the kernel has reaped it, because the program that started us made us ignore SIGCHLD.
    """
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, options)[1])
    except ChildProcessError:
        return None
