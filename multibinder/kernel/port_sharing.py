"""Let sockets of one process listen on one port, on addresses that overlap: 0.0.0.0 beside 10.0.0.5.

The kernel allows that while all of them have SO_REUSEPORT and belong to the same user (inet_bind_conflict() in
net/ipv4/inet_connection_sock.c). They keep their addresses when the option is taken away, and then no other process can
join them. But the kernel also notes, for the port, the last user and address that were allowed, and lets a later socket
with SO_REUSEPORT of that user bind there without a look at the sockets (inet_csk_update_fastreuse()). The note stays as
long as one of the sockets. So it has to name a user or an address that nobody uses.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence

from multibinder.kernel.socket_options import is_shared, set_shared

#: The sockets belong to this uid while they bind, or share a port, if the process may give files away (CAP_CHOWN). No
#: range of uids that is in use for users, containers or services reaches so far (UIDS-GIDS.md of systemd).
UNUSED_UID = 4_000_000_000
#: Addresses on which no client can arrive: one that routers discard (RFC 6666), and a multicast address.
_UNREACHABLE = ((socket.AF_INET6, "100::6d:6273"), (socket.AF_INET, "224.109.98.115"))
#: linux/in6.h. The address need not exist on this host.
_IPV6_FREEBIND = 78


@contextlib.contextmanager
def side_by_side(sockets: Sequence[socket.socket], port: int) -> Iterator[None]:
    """Let each of ``sockets`` bind and listen on ``port`` beside the others for the time of this block.

    They are all of TCP or all of UDP, for which the kernel makes no such note.

    Afterwards they have SO_REUSEPORT only if they had it before (``share``), and other processes cannot bind beside the
    others. One exception: if the process may not give files away, and ``::`` without IPV6_V6ONLY was the last, another
    process of the same user can, if it sets SO_REUSEPORT. A socket that is closed in the block is left alone.
    """
    before = [(is_shared(sock), os.fstat(sock.fileno()).st_uid) for sock in sockets]
    is_given_away = False
    try:
        for sock in sockets:
            set_shared(sock, True)
        # The TCP sockets inside one of Multipath TCP keep their user.
        if not any(sock.proto == socket.IPPROTO_MPTCP for sock in sockets):
            with contextlib.suppress(OSError):
                for sock in sockets:
                    os.fchown(sock.fileno(), UNUSED_UID, -1)
                is_given_away = True
        yield
    finally:
        if not is_given_away and sockets[0].type == socket.SOCK_STREAM:
            _note_unreachable_address(port)
        for sock, (was_shared, uid) in zip(sockets, before, strict=True):
            if sock.fileno() >= 0:
                set_shared(sock, was_shared)
                with contextlib.suppress(OSError):
                    os.fchown(sock.fileno(), uid, -1)


def share(sock: socket.socket) -> None:
    """Let a socket have its port together with others of this process for as long as they like.

    No other process can join them if this one may give files away. Else one of the same user can, if it sets
    SO_REUSEPORT.
    """
    set_shared(sock, True)
    if os.fstat(sock.fileno()).st_uid != UNUSED_UID:
        with contextlib.suppress(OSError):
            os.fchown(sock.fileno(), UNUSED_UID, -1)


def end_sharing(sock: socket.socket) -> None:
    """Undo ``share``, and what a process that was killed in a block of ``side_by_side`` has left on the socket."""
    set_shared(sock, False)
    if os.fstat(sock.fileno()).st_uid == UNUSED_UID:
        with contextlib.suppress(OSError):
            os.fchown(sock.fileno(), os.geteuid(), -1)


def stop_sharing(sock: socket.socket, port: int) -> None:
    """Take SO_REUSEPORT away from a socket that was bound with it, and the note that it has left.

    Another socket, which is never ready, is bound beside it for a moment, because a bind is what changes the note.
    Raises OSError.
    """
    end_sharing(sock)
    with socket.socket(sock.family, sock.type, sock.proto) as last, side_by_side([sock, last], port):
        last.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        last.bind(sock.getsockname())


def _note_unreachable_address(port: int) -> None:
    """Let the kernel note an address that is of no use to a later process.

    A noted wildcard address is replaced only by an address that it does not include; ``::`` includes all.
    """
    for family, host in _UNREACHABLE:
        with contextlib.suppress(OSError), socket.socket(family) as last:
            last.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            set_shared(last, True)
            if family == socket.AF_INET6:
                last.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            last.bind((host, port))
