"""Read from the kernel what a Unix socket does not tell by itself: its file, its queue, its shutdown (unix_diag.h).

getsockname(2) returns what was bound, not where the file is now. This is the truth: the inode and the device of the
file. It needs no privilege, but a socket of the family AF_NETLINK, which a unit can forbid (RestrictAddressFamilies=).
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from multibinder.kernel.socket_options import cookie_of, inode_of

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SHOW_VFS, _SHOW_PEER, _SHOW_RQLEN = 0x02, 0x04, 0x10
_VFS, _PEER, _RQLEN, _SHUTDOWN = 1, 2, 4, 6
_ALL_STATES = 0xFFFFFFFF
_LISTEN = 10

#: struct nlmsghdr; struct unix_diag_req; struct unix_diag_msg; struct nlattr.
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIQ")
_MESSAGE = struct.Struct("=BBBxIQ")
_ATTRIBUTE = struct.Struct("=HH")
_PAIR = struct.Struct("=II")
_ONE = struct.Struct("=I")
_BUFFER = 1 << 16
_ANY_COOKIE = 2**64 - 1
_MINOR_BITS = 20  # of dev_t in the kernel (include/linux/kdev_t.h)


class FileId(NamedTuple):
    """The identity of a file as sock_diag(7) shows it: 32 bits of its inode, and the kernel's number of its device."""

    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileId:
        device = status.st_dev
        return cls(status.st_ino & 0xFFFFFFFF, os.major(device) << _MINOR_BITS | os.minor(device))


class UnixSocket(NamedTuple):
    """What the kernel tells of a Unix socket.

    ``inode`` is that of the socket, as /proc/PID/fd shows it, ``cookie`` its SO_COOKIE. ``file`` is its path's.
    ``queue`` and ``limit`` count the connections of a socket that listens. ``is_shut`` is true if a holder has called
    shutdown(2), for one direction or both. ``peer`` is the inode of the other end of a connection, 0 until a process
    has accepted it.
    """

    inode: int
    kind: int
    is_listening: bool
    file: FileId | None
    queue: int
    limit: int
    is_shut: bool
    cookie: int
    peer: int = 0


def look_at(sock: socket.socket) -> UnixSocket:
    """Return what the kernel tells of one socket of this network namespace. Takes some 20 microseconds.

    Raises OSError: EAFNOSUPPORT or EPERM if this process may not ask.
    """
    for found in _ask(0, inode_of(sock), cookie_of(sock), _SHOW_VFS | _SHOW_RQLEN):
        return found
    raise ProcessLookupError("sock_diag: no such socket")


def peer_inode(sock: socket.socket) -> int:
    """Return the inode of the other end of a connection; 0 until a process has accepted it. Raises as ``look_at``."""
    for found in _ask(0, inode_of(sock), cookie_of(sock), _SHOW_PEER):
        return found.peer
    return 0


def unix_sockets() -> Iterator[UnixSocket]:
    """Yield every Unix socket of this network namespace. Raises OSError as ``look_at`` does."""
    yield from _ask(_NLM_F_DUMP, 0, _ANY_COOKIE, _SHOW_VFS | _SHOW_RQLEN)


def inodes_at(path: str) -> frozenset[int]:
    """Return the inodes of the sockets of this network namespace whose file is at ``path``. Raises OSError."""
    return frozenset(each.inode for each in unix_sockets() if each.file is not None and leads_to(path, each.file))


def leads_to(path: str, file: FileId) -> bool:
    """Return whether ``path`` is this file; a symbolic link is not."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISSOCK(status.st_mode) and is_file(path, status, file)


def is_file(path: str, status: os.stat_result, file: FileId) -> bool:
    """Return whether a file at ``path``, with this lstat(2), is the file of a socket."""
    shown = FileId.of(status)
    if shown == file:
        return True
    # stat(2) shows a made-up device for some file systems (Btrfs). The mount has the device that unix_diag shows.
    return shown.inode == file.inode and _device_of_mount(path) == file.device


def _device_of_mount(path: str) -> int | None:
    try:
        descriptor = os.open(os.path.dirname(path), os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with open(f"/proc/self/fdinfo/{descriptor}") as lines:
            mount = next((line.split()[1] for line in lines if line.startswith("mnt_id:")), "")
        with open("/proc/self/mountinfo") as lines:
            for line in lines:
                number, _, device = line.split(maxsplit=3)[:3]
                if number == mount:
                    major, _, minor = device.partition(":")
                    return int(major) << _MINOR_BITS | int(minor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return None


def _ask(flags: int, inode: int, cookie: int, show: int) -> Iterator[UnixSocket]:
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, _ALL_STATES, inode, show, cookie)
    header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | flags, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
        netlink.sendall(header + request)
        while True:
            datagram = netlink.recv(_BUFFER)
            offset = 0
            while offset < len(datagram):
                length, kind, _, _, _ = _HEADER.unpack_from(datagram, offset)
                body = datagram[offset + _HEADER.size : offset + length]
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    number = -struct.unpack_from("=i", body)[0]
                    raise OSError(number, f"sock_diag: {os.strerror(number)}")
                yield _read(body)
                if not flags:
                    return
                offset += (length + 3) & ~3


def _read(body: bytes) -> UnixSocket:
    _, kind, state, inode, cookie = _MESSAGE.unpack_from(body)
    file, queue, limit, shut, peer = None, 0, 0, 0, 0
    offset = _MESSAGE.size
    while offset + _ATTRIBUTE.size <= len(body):
        length, what = _ATTRIBUTE.unpack_from(body, offset)
        value = body[offset + _ATTRIBUTE.size : offset + length]
        if what == _VFS:
            file = FileId(*_PAIR.unpack(value))
        elif what == _RQLEN:
            queue, limit = _PAIR.unpack(value)
        elif what == _PEER:
            (peer,) = _ONE.unpack(value)
        elif what == _SHUTDOWN:
            shut = value[0]
        offset += max((length + 3) & ~3, _ATTRIBUTE.size)
    return UnixSocket(inode, kind, state == _LISTEN, file, queue, limit, bool(shut), cookie, peer)
