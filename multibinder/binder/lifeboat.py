"""The lifeboat of an upgrade without a keeper: a copy of the old process that takes over if the new code fails.

The process that executes the new code has no way back. If the new code then ends before it serves (a traceback, a
missing library, a crash), the kernel closes every listener that no other process keeps. So the old code forks a copy of
itself first, which has all descriptors and waits. When the new version serves, it writes one byte to a pipe that was
passed on to it, and the copy exits. If the process of the new version ends before that, the copy goes on as the old
version.

With a keeper there is no lifeboat: the keeper starts the next binder, and two must never serve.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Mapping

from multibinder.binder.keeper import GUARDED

#: The name of the pipe among the descriptors that are passed to the next version.
LIFEBOAT = "lifeboat"
_SERVING = b"S"
#: An older version closes the pipe unread. It has this time to answer a client.
_OLDER_VERSION_S = 10.0
_ASK_EVERY_S = 0.05
_HELLO = b'{"jsonrpc":"2.0","method":"hello","id":"lifeboat","params":[]}\n'


def is_kept(environment: Mapping[str, str]) -> bool:
    """Return whether a keeper starts the binder again, with its listeners, when this process dies."""
    return bool(environment.get("NOTIFY_SOCKET")) and ("FDSTORE" in environment or GUARDED in environment)


def launch(socket_path: str) -> int | None:
    """Fork the lifeboat. Return the descriptor of the pipe, which the caller owns, in the process that forked it.

    In the lifeboat itself, return None when it has to take over. Raises OSError if it cannot be forked.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    binder = os.getpid()
    pidfd = -1
    try:
        pidfd = os.pidfd_open(binder)
        child = os.fork()
        if child == 0:
            _wait_in_the_lifeboat(reading, writing, pidfd, binder, socket_path)
            return None
    except OSError:
        os.close(writing)
        raise
    finally:
        os.close(reading)
        if pidfd >= 0:
            os.close(pidfd)
    # The child forks the lifeboat and exits: the new version, perhaps an older one, must have no child to reap.
    try:
        failed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except ChildProcessError:
        failed = 0  # the kernel has reaped it; without a lifeboat, the pipe has no reader, which harms nothing
    if failed:
        os.close(writing)
        raise OSError(failed, os.strerror(failed)) if failed > 0 else ChildProcessError(0, f"signal {-failed}")
    return writing


def dismiss(pipe: int) -> None:
    """Tell the lifeboat that it is not needed, and close the pipe."""
    with contextlib.suppress(OSError):
        os.write(pipe, _SERVING)
    os.close(pipe)


def _wait_in_the_lifeboat(reading: int, writing: int, pidfd: int, binder: int, socket_path: str) -> None:
    """Fork again and exit; in the second child, wait. Return only if this process has to take over."""
    try:
        if os.fork() != 0:
            os._exit(0)
    except OSError as error:
        os._exit(error.errno or 1)
    try:
        os.close(writing)
        # A stop is for this process too. All other signals are for the binder.
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if not _has_to_take_over(reading, pidfd, binder, socket_path):
            os._exit(0)
    except BaseException:
        # Two binders must never serve.
        os._exit(1)


def _has_to_take_over(reading: int, pidfd: int, binder: int, socket_path: str) -> bool:
    """Wait until the new version serves, or its process has ended. Return whether it ended before it served."""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    poll.poll()
    os.set_blocking(reading, False)
    try:
        said = os.read(reading, 1)
    except BlockingIOError:
        said = b""  # the process has ended, and a child of it has the pipe open
    if said:
        return False
    # The process has ended, or is about to; or it is of an older version, which has closed the pipe.
    poll.unregister(reading)
    end = time.monotonic() + _OLDER_VERSION_S
    while time.monotonic() < end:
        if poll.poll(_ASK_EVERY_S * 1000):
            return True
        if _answers(socket_path, binder):
            return False
    return bool(poll.poll(0))


def _answers(socket_path: str, binder: int) -> bool:
    """Return whether the binder with this PID answers at the control socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.setblocking(False)
            client.connect(socket_path)
            client.send(_HELLO)
            client.setblocking(True)
            client.settimeout(_ASK_EVERY_S * 4)
            return f'"pid":{binder},'.encode() in client.recv(65536)
        except OSError:
            return False
