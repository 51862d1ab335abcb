"""``leave``: the way back to a plain HAProxy, without losing a client.

The plain HAProxy gets the listeners by its own ``-x``. A process of ours answers once. When its worker accepts
on them, the binder lets go of the listeners, and our instance finishes its connections and ends. Whatever fails before
that, our instance serves as before.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from typing import NoReturn

from multibinder import Client, MultibinderError
from multibinder.kernel.accepting import accepts_on
from multibinder.kernel.descriptors import scan
from multibinder.kernel.process import with_descendants
from multibinder.launch.errors import LaunchError, UsageError
from multibinder_haproxy import plan, sockets, stop
from multibinder_haproxy.arguments import Argument, join, parse
from multibinder_haproxy.getsocks import Given, answer
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.invocation import Invocation
from multibinder_haproxy.reexec import environment

SOCKET_NAME = "leave.sock"
#: The time in which the new HAProxy has to ask: it reads its configuration first, with all certificates.
_ASKS_WITHIN_S = 600.0
_LOOK_S, _STABLE_S = 0.05, 0.5


def leave(instance: Instance, command: Sequence[str], *, end: bool) -> NoReturn:
    """Become the plain HAProxy of ``command``, with the listeners of an instance.

    Without ``end``, the instance and the claims of its owner stay as they are: the caller has to end both. Raises
    LaunchError and MultibinderError; then nothing has changed.
    """
    invocation = instance.read_invocation()
    haproxy, arguments = plan.executable(command[0]), parse(command[1:])
    if any(argument.flag == "-x" for argument in arguments):
        raise UsageError("-x is what 'leave' adds: leave it out")
    loaded = instance.read_loaded()
    unused = {bind.key for bind in loaded.unused} if loaded else set()
    slots = [slot for slot in loaded.config.slots if slot.key not in unused] if loaded else []
    if not invocation.binder or not slots:
        raise LaunchError(f"{instance.name} has no listeners of a binder: stop it, and start HAProxy as it is")
    with Client(invocation.binder) as client:
        held = client.bind([slot.spec for slot in slots], owner=invocation.owner)
    given = [Given(sock.fileno(), slot.netns, slot.interface or "") for slot, sock in zip(slots, held, strict=True)]
    for each in given:
        # As if HAProxy had opened it: sockets of one user share a port where both have SO_REUSEPORT (socket(7)).
        with contextlib.suppress(OSError):
            os.fchown(each.descriptor, os.geteuid(), -1)
    path = instance.path(SOCKET_NAME)
    with _listening(path) as asked:
        _start_answering(instance, invocation, asked, path, given, end=end)
    for name in (environment.INVOCATION, environment.PYTHON, environment.PROGRAM):
        os.environ.pop(name, None)
    # Python ignores these two, and an ignored signal stays ignored across exec (signal(7)).
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execv(haproxy, [command[0], *join([Argument("-x", (path,)), *arguments])])
    except OSError as error:
        raise LaunchError(f"cannot execute {haproxy}: {error.strerror}") from error


@contextlib.contextmanager
def _listening(path: str) -> Iterator[socket.socket]:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        sock.bind(path)
    except OSError as error:
        sock.close()
        raise LaunchError(f"{path}: cannot listen for HAProxy: {error.strerror}") from error
    finally:
        os.umask(before)
    sock.listen(1)
    try:
        yield sock
    finally:
        sock.close()


def _start_answering(
    instance: Instance,
    invocation: Invocation,
    asked: socket.socket,
    path: str,
    given: Sequence[Given],
    *,
    end: bool,
) -> None:
    """Let another process answer, in a session of its own, that is no child of HAProxy's."""
    becomes_haproxy = os.getpid()
    pidfd = os.pidfd_open(becomes_haproxy)
    child = os.fork()
    if child:
        os.close(pidfd)
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            _answer_and_end(instance, invocation, asked, path, given, becomes_haproxy, pidfd, end=end)
    except Exception as error:
        instance.log.write("error", f"HAProxy is not replaced: {type(error).__name__}: {error}; our instance serves on")
    finally:
        os._exit(0)


def _answer_and_end(
    instance: Instance,
    invocation: Invocation,
    asked: socket.socket,
    path: str,
    given: Sequence[Given],
    haproxy: int,
    pidfd: int,
    *,
    end: bool,
) -> None:
    try:
        if not _answer_once(asked, given, pidfd):
            raise LaunchError("the new HAProxy has ended, or did not ask for the listeners")
    finally:
        asked.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    if not end:
        return
    if not _await_worker(haproxy, pidfd, {os.fstat(each.descriptor).st_ino for each in given}):
        raise LaunchError("the new HAProxy has ended before it accepted; its log says more")
    for each in given:
        os.close(each.descriptor)
    end_instance(instance, invocation)


def end_instance(instance: Instance, invocation: Invocation) -> None:
    """Let go of the listeners of an instance, and let it finish its connections, however long that takes."""
    assert invocation.binder is not None  # noqa: S101 (leave() has checked it)
    try:
        left = sockets.leave_open(invocation.binder, invocation.owner)
        instance.log.write("notice", f"left open for the plain HAProxy: {', '.join(left)}")
    except MultibinderError as error:
        instance.log.write(
            "error",
            f"the binder still holds the listeners: {error}; 'multibinder release --leave-open --owner "
            f"{invocation.owner} ADDRESS...' lets go of them",
        )
    stop.stop(instance, float("inf"), keep_listeners=True)


def _answer_once(asked: socket.socket, given: Sequence[Given], pidfd: int) -> bool:
    """Answer the question of the new HAProxy. Return False if it has ended, or does not ask."""
    waiting = select.poll()
    waiting.register(asked, select.POLLIN)
    waiting.register(pidfd, select.POLLIN)
    ready = dict(waiting.poll(_ASKS_WITHIN_S * 1000))
    if asked.fileno() not in ready:
        return False
    connection, _ = asked.accept()
    with connection:
        answer(connection, given)
    return True


def _await_worker(haproxy: int, pidfd: int, inodes: set[int]) -> bool:
    """Wait until a worker accepts on each of its sockets. Return False if the new HAProxy ends before."""
    since: float | None = None
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    while not ended.poll(_LOOK_S * 1000):
        found = scan(inodes, pids=with_descendants(haproxy)).processes
        accepting = [each for each in found if accepts_on(each) >= {inode for _, inode in each.sockets}]
        if not accepting:
            since = None
        elif since is None:
            since = time.monotonic()
        elif time.monotonic() - since >= _STABLE_S:
            return True
    return False
