"""Send and receive bytes and descriptors over an AF_UNIX stream socket: the only sendmsg(2) and recvmsg(2) here."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from multibinder.kernel.socket_options import UCRED
from multibinder.wire.errors import DescriptorsLost

#: The kernel takes 253 descriptors in one message (SCM_MAX_FD, include/net/scm.h); some libcs fail at that number.
MAX_DESCRIPTORS = 252

_FD_SIZE = array.array("i").itemsize
_ANCILLARY_SIZE = socket.CMSG_SPACE((MAX_DESCRIPTORS + 1) * _FD_SIZE) + socket.CMSG_SPACE(UCRED.size)
CHUNK_BYTES = 16384
# The module ``socket`` has members of enumerations, whose operators are functions of Python.
_CLOEXEC, _TRUNCATED = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_CTRUNC)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Return one chunk, empty at the end, and the descriptors that came with it, close-on-exec. The caller owns them.

    Raises DescriptorsLost if the kernel had to drop descriptors; none are left open then.
    """
    arrived, descriptors, _, is_whole = receive_datagram(sock)
    if not is_whole:
        close_all(descriptors)
        raise DescriptorsLost(
            f"the kernel dropped descriptors on their way to us: this process is at its limit of {_most_files()} open "
            "files (RLIMIT_NOFILE; see 'ulimit -n', or LimitNOFILE= in its unit)",
            arrived,
        )
    return arrived, descriptors


class Datagram(NamedTuple):
    """A message, the descriptors that came with it, which the caller owns, and what the kernel says of it.

    ``uid`` is the sender's if the socket has SO_PASSCRED (unix(7)), else None. ``is_whole`` is False if the kernel had
    to drop descriptors: this process is at its limit of open files.
    """

    text: bytes
    descriptors: list[int]
    uid: int | None
    is_whole: bool


def receive_datagram(sock: socket.socket) -> Datagram:
    """Return one message, or one chunk of a stream. Its descriptors are close-on-exec."""
    # socket.recv_fds() ignores its flags, so the descriptors that it receives are inheritable at first.
    arrived, ancillary, flags, _ = sock.recvmsg(CHUNK_BYTES, _ANCILLARY_SIZE, _CLOEXEC)
    if not ancillary and not flags & _TRUNCATED:
        return Datagram(arrived, [], None, True)
    uid = None
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % _FD_SIZE])
        elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            _, uid, _ = UCRED.unpack(content)
    return Datagram(arrived, descriptors.tolist(), uid, not flags & _TRUNCATED)


def send(sock: socket.socket, message: bytes | memoryview, descriptors: Sequence[int] = ()) -> int:
    """Send at most 252 descriptors, which stay the caller's, with the first byte; return how many bytes were sent.

    Raises what sendmsg(2) raises; then neither a byte nor a descriptor was sent.
    """
    if not descriptors:
        return sock.send(message)
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
    return sock.sendmsg([message], [rights])


def _most_files() -> int:
    return os.sysconf("SC_OPEN_MAX")  # the soft limit, as it is now (sysconf(3))


def close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
