"""Silence a UDP socket: no datagram reaches it any more, through whichever process holds it.

A UDP socket that is connected gets datagrams of its peer only. So it is connected to an address from which none
arrives. What waits in its queue stays there, and its holders can still send. poll(2) reports nothing for it. That is
unlike shutdown(2), which no call undoes for UDP: after it, poll(2) reports POLLIN for ever, and datagrams are queued
all the same.
"""

from __future__ import annotations

import errno
import select
import socket

#: Addresses from which no datagram arrives: a loopback address that nobody uses, and one that is reserved (RFC 1112).
_IPV4_HOSTS = ("127.109.98.115", "240.109.98.115")
#: A socket that takes IPv4 too can be connected to the first one; then an address that routers discard (RFC 6666), and,
#: without a route to that, the loopback address, from a port that only root can use.
_IPV6_HOSTS = (f"::ffff:{_IPV4_HOSTS[0]}", "100::6d:6273", "::1")
_HOSTS = frozenset({*_IPV4_HOSTS, *_IPV6_HOSTS})
#: discard (RFC 863).
_PORT = 9
_INTERFACE_BYTES = 16  # IFNAMSIZ


def silence(sock: socket.socket) -> None:
    """Keep datagrams from the socket. One that is bound to no specific address is bound to a loopback one then.

    Raises OSError if it can be connected to none of the addresses.
    """
    from multibinder.kernel.disconnect import disconnect  # loaded before: see there

    failure = _connect(sock)
    if failure is not None:
        disconnect(sock)  # No way leads to them from its interface. This takes the interface away.
        failure = _connect(sock)
    if failure is not None:
        raise failure


def is_silenced(sock: socket.socket) -> bool:
    """Return whether ``silence`` has succeeded for this socket."""
    peer = peer_of(sock)
    return peer is not None and peer[0] in _HOSTS and peer[1] == _PORT


def peer_of(sock: socket.socket) -> tuple[str, int] | None:
    """Return the host and port that a socket is connected to (getpeername(2)); None if it is not connected."""
    try:
        host, port = sock.getpeername()[:2]
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        return None
    return host, port


def is_shut_down(sock: socket.socket) -> bool:
    """Return whether a holder has ended receiving (shutdown(2)). One that has ended sending alone is not noticed."""
    look = select.poll()
    look.register(sock, select.POLLRDHUP)
    return bool(look.poll(0))


def receive_from_all(sock: socket.socket, port: int) -> None:
    """Undo connect(2) for a socket of IPv4, which was bound to ``port``. Raises OSError.

    The kernel forgets a port that it has chosen itself, and the interface (__udp_disconnect() in net/ipv4/udp.c). It
    does not forget the peer of a socket of IPv6: that gets no datagram of other senders ever again (compute_score() in
    net/ipv6/udp.c compares sk_v6_daddr).
    """
    from multibinder.kernel.disconnect import disconnect  # loaded before: see there

    if sock.family != socket.AF_INET:
        raise OSError(errno.EOPNOTSUPP, "the kernel cannot undo connect(2) for UDP over IPv6")
    interface = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _INTERFACE_BYTES)
    disconnect(sock)
    if interface:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface)
    host, bound_to = sock.getsockname()
    if bound_to == 0:
        sock.bind((host, port))


def _connect(sock: socket.socket) -> OSError | None:
    """Connect the socket to the first of the addresses to which a way leads, or return the error of the last one."""
    failure = OSError(errno.ENETUNREACH, "no address to connect the socket to")
    for host in _IPV4_HOSTS if sock.family == socket.AF_INET else _IPV6_HOSTS:
        try:
            sock.connect((host, _PORT))
        except OSError as error:
            failure = error
        else:
            return None
    return failure
