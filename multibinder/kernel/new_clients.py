"""Keep new clients from a listening TCP socket, while those that wait in its queue can still be accepted.

A socket that is bound to an interface is found for packets of that interface only (compute_score() in
net/ipv4/inet_hashtables.c). Bound to the loopback interface, a socket is none for clients of other hosts: they are
refused. A handshake that has begun goes on, because the kernel finds it by its own entry.
"""

from __future__ import annotations

import contextlib
import socket

#: asm-generic/socket.h. Unlike SO_BINDTODEVICE it can be set for a socket of another network namespace.
_SO_BINDTOIFINDEX = 62
#: The index of the loopback interface in each network namespace (net/core/dev.h).
_LOOPBACK, _ANY = 1, 0


def turn_remote_clients_away(sock: socket.socket) -> None:
    """Refuse clients of other hosts. A socket that is bound to an interface stays as it is. Needs no privilege."""
    if sock.getsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX) == _ANY:
        with contextlib.suppress(PermissionError):  # before Linux 5.7
            sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, _LOOPBACK)


def let_remote_clients_in(sock: socket.socket) -> None:
    """Undo ``turn_remote_clients_away``. Raises PermissionError without CAP_NET_RAW (sock_bindtoindex_locked())."""
    if sock.getsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX) == _LOOPBACK:
        sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, _ANY)


def can_let_remote_clients_in(family: int) -> bool:
    """Return whether this process may undo ``turn_remote_clients_away``. Raises OSError for a shortage."""
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        turn_remote_clients_away(sock)
        try:
            let_remote_clients_in(sock)
        except PermissionError:
            return False
    return True
