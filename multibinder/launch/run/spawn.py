"""Start a command in a process of its own, in a session of its own."""

from __future__ import annotations

import fcntl
import os
import signal
from typing import NoReturn

from multibinder.launch.run.tasks import readable
from multibinder.launch.styles.draft import Draft, become

#: The time for the kernel to execute a program: its file may be on a slow network.
_EXECUTE_S = 30.0
_SEPARATOR = b"\0"


class Inheritance:
    """What a command gets of ``run`` as it was itself started: the blocked signals, and those that were ignored."""

    def __init__(self) -> None:
        self.blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self.ignored = [
            number
            for number in signal.valid_signals()
            if number not in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)  # Python, and a careless caller
            and signal.getsignal(number) == signal.SIG_IGN
        ]


class Started:
    """A child that was started. ``failure`` returns why it could not execute its command."""

    def __init__(self, pid: int, errors: int) -> None:
        self.pid = pid
        self._errors = errors

    async def failure(self) -> OSError | None:
        """Wait until the command is executed, and return None; else the error."""
        said = b""
        try:
            while await readable(self._errors, _EXECUTE_S):
                more = os.read(self._errors, 4096)
                said += more
                if not more:
                    break
        finally:
            os.close(self._errors)
        if not said:
            return None
        number, name = said.split(_SEPARATOR, 1)
        return OSError(int(number), os.strerror(int(number)), os.fsdecode(name) or None)


def spawn(draft: Draft, inheritance: Inheritance, output: int, directory: str | None) -> Started:
    """Fork, and execute the command there. stdin is /dev/null, stdout and stderr are ``output``.

    The caller keeps ``output``. Raises OSError if there can be no further process.
    """
    reading, writing = os.pipe()
    try:
        moved = fcntl.fcntl(writing, fcntl.F_DUPFD_CLOEXEC, max(draft.first_free, 3))
        os.close(writing)
        writing = moved
        source = fcntl.fcntl(output, fcntl.F_DUPFD_CLOEXEC, max(draft.first_free, 3))
        try:
            # No handler of ours may run in the child: it would write to the parent's queue of signals.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                parent = os.getpid()
                pid = os.fork()
                if pid == 0:
                    _become_in_child(draft, inheritance, source, writing, directory, parent)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        finally:
            os.close(source)
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return Started(pid, reading)


def _become_in_child(
    draft: Draft, inheritance: Inheritance, output: int, errors: int, directory: str | None, parent: int
) -> NoReturn:
    try:
        try:
            os.setsid()
            if directory is not None:
                os.chdir(directory)
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.close(null)
            os.dup2(output, 1)
            os.dup2(output, 2)
            signal.set_wakeup_fd(-1)
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                ignored = number in inheritance.ignored
                signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, inheritance.blocked)
            become(draft, parent)
        except OSError as error:
            name = os.fsencode(error.filename) if error.filename else b""
            os.write(errors, b"%d%b%b" % (error.errno or 0, _SEPARATOR, name))
    finally:
        os._exit(127)
