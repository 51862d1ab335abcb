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
import errno
import os
import select
import signal
import socket
import time
from collections.abc import Mapping, MutableMapping
from typing import NamedTuple

from multibinder.binder.keeper import GUARDED
from multibinder.binder.loop import Loop

#: The name of the pipe among the descriptors that are passed to the next version.
LIFEBOAT = "lifeboat"
#: The environment variable that tells the next version the PIDs of lifeboats, with a space between.
PIDS = "MULTIBINDER_LIFEBOATS"
_SERVING = b"S"
#: A lifeboat that has been dismissed exits within this time.
_REAP_AFTER_S = 1.0
#: An older version closes the pipe unread. It has this time to answer a client.
_OLDER_VERSION_S = 10.0
_ASK_EVERY_S = 0.05
_HELLO = b'{"jsonrpc":"2.0","method":"hello","id":"lifeboat","params":[]}\n'


class Lifeboat(NamedTuple):
    """The pipe that dismisses the lifeboat, which the caller owns, and the PID of the lifeboat."""

    pipe: int
    pid: int


def is_kept(environment: Mapping[str, str]) -> bool:
    """Return whether a keeper starts the binder again, with its listeners, when this process dies."""
    return bool(environment.get("NOTIFY_SOCKET")) and ("FDSTORE" in environment or GUARDED in environment)


def launch(socket_path: str) -> Lifeboat | None:
    """Fork the lifeboat, and return it in the process that forked it.

    In the lifeboat itself, return None when it has to take over. Raises OSError if it cannot be forked.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    opened = [reading]
    binder = os.getpid()
    try:
        pidfd = os.pidfd_open(binder)
        opened.append(pidfd)
        told, telling = os.pipe2(os.O_CLOEXEC)
        opened += [told, telling]
        child = os.fork()
        if child == 0:
            _wait_in_the_lifeboat(reading, writing, telling, pidfd, binder, socket_path)
            return None
        # The child forks the lifeboat and exits: an older version would never reap it.
        os.close(opened.pop())
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)
        pid = os.read(told, 32)
        if not pid.isdigit():
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return Lifeboat(writing, int(pid))
    except OSError:
        os.close(writing)
        raise
    finally:
        for descriptor in opened:
            os.close(descriptor)


def reap(environment: MutableMapping[str, str], loop: Loop) -> None:
    """Reap lifeboats that were dismissed, if this process is their parent: PID 1, or a subreaper (prctl(2)).

    The PIDs of those that have not ended yet stay in the environment, for the next try or the next version.
    """
    pids = [pid for pid in environment.pop(PIDS, "").split() if pid.isdigit() and _may_be_our_child(int(pid))]
    if pids:
        environment[PIDS] = " ".join(pids)
        loop.call_later(_REAP_AFTER_S, lambda: reap(environment, loop))


def _may_be_our_child(pid: int) -> bool:
    """Reap a child that has ended. Return whether ``pid`` is a child that has not."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False


def dismiss(pipe: int | None) -> None:
    """Tell the lifeboat that it is not needed, and close the pipe. None if there is no lifeboat."""
    if pipe is None:
        return
    with contextlib.suppress(OSError):
        os.write(pipe, _SERVING)
    os.close(pipe)


def _wait_in_the_lifeboat(reading: int, writing: int, telling: int, pidfd: int, binder: int, socket_path: str) -> None:
    """Fork again and exit; in the second child, wait. Return only if this process has to take over."""
    try:
        if (lifeboat := os.fork()) != 0:
            os.write(telling, b"%d" % lifeboat)
            os._exit(0)
    except OSError:
        os._exit(1)
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
