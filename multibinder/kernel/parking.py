"""Park a TCP socket that no longer listens: no process that holds it is woken by it any more.

After shutdown(2), poll(2) reports POLLIN and POLLHUP for a listener for ever. An event loop that holds it calls
accept(2), which fails with EINVAL, again and again. A connected socket to which no packet arrives reports neither. So
the socket is connected to a listener of ours on loopback, and that end disappears without a word: with
TCP_DEFER_ACCEPT its kernel waits for data before it makes a connection of the handshake, and forgets the handshake when
the listener is closed (tcp_check_req() and reqsk_timer_handler() in net/ipv4).

For its holders, accept(2) and listen(2) on a parked socket fail with EINVAL, poll(2) reports POLLOUT, and TCP_INFO the
state ESTABLISHED. This needs no privilege.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from collections.abc import Iterator

from multibinder.kernel.accept_queue import TCP_ESTABLISHED, state_of
from multibinder.kernel.new_clients import turn_remote_clients_away
from multibinder.kernel.socket_options import cookie_of, netns_cookie_of

#: A packet to the address and port of a parked socket, from the address and port that it is connected to, would be
#: taken for a part of its connection. No client of a later listener has this loopback address.
_IPV4_HOST = "127.109.98.115"
#: A socket that takes IPv4 too can be connected to the first one, others to the second only. There, a client of a later
#: listener has another port, because the kernel chooses those from 32768 on (ip_local_port_range).
_IPV6_HOSTS = (f"::ffff:{_IPV4_HOST}", "::1")
_IPV6_PORTS = range(20000, 32768)
#: As many ports of them are tried.
_TRIES = 3
#: The kernel connects two sockets of one host at once, in connect(2). Where it does not, packets are lost (the
#: loopback interface is down, a firewall drops them): then this is the longest wait, and the time until the next try.
_PATIENCE_S, _PAUSE_S = 0.01, 60.0
_DEFER_ACCEPT_S = 1
_INTERFACE_BYTES = 16  # IFNAMSIZ
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # struct linger
#: struct timeval. The kernel rounds it up to one tick, at most 10 ms.
_ONE_TICK = struct.pack("ll", 0, 1)


class _NextTry:
    """The time of time.monotonic() before which no socket is parked."""

    at = 0.0


def is_parked(sock: socket.socket) -> bool:
    """Return whether this socket, which had listened, is parked. Raises OSError for a socket that is not TCP."""
    return state_of(sock) == TCP_ESTABLISHED


def park(sock: socket.socket) -> bool:
    """Park a socket on which shutdown(2) was called. Return whether that has succeeded.

    It does not succeed for a socket of another network namespace than ours, for one that is bound to an interface
    (SO_BINDTODEVICE, a link-local address) other than the loopback one, or if no packet passes on loopback. The socket
    is as before then, but for options that have a meaning for connections only. Blocks for some 0.1 ms; for 20 ms where
    packets on loopback are lost, at most once a minute. Raises OSError for a shortage of descriptors or memory.
    """
    from multibinder.kernel.disconnect import disconnect  # loaded before: see there

    interface = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _INTERFACE_BYTES)
    if time.monotonic() < _NextTry.at or interface not in (b"", b"lo\0"):
        return False
    # The last close(2) then frees the socket at once, and no timer of the connection ends it before.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _ONE_TICK)
    for address in _addresses(sock):
        with socket.socket(sock.family, socket.SOCK_STREAM) as end:
            if netns_cookie_of(end) != netns_cookie_of(sock):
                return False
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFER_ACCEPT_S)
            try:
                if address[0].endswith(_IPV4_HOST):
                    turn_remote_clients_away(end)  # its answer reaches a socket that is bound to this interface, too
                end.bind(address)
                end.listen(1)
            except OSError:  # no such address here, or the port is in use
                continue
            # A second shutdown(2) leaves a mark, which ends the connection that follows. This takes it away.
            disconnect(sock)
            _connect(sock, end.getsockname())
        if is_parked(sock):
            return True
    return False


def _addresses(sock: socket.socket) -> Iterator[tuple[str, int]]:
    if sock.family == socket.AF_INET:
        yield _IPV4_HOST, 0
        return
    of_ipv4, host = _IPV6_HOSTS
    yield of_ipv4, 0
    first = cookie_of(sock)
    for port in range(first, first + _TRIES):
        yield host, _IPV6_PORTS[port % len(_IPV6_PORTS)]


def _connect(sock: socket.socket, address: tuple[str, int]) -> None:
    if sock.connect_ex(address) != errno.EINPROGRESS:
        return
    # O_NONBLOCK is set, or packets are lost.
    waiting = select.poll()
    waiting.register(sock, select.POLLOUT)
    waiting.poll(_PATIENCE_S * 1000)
    if sock.connect_ex(address) in (errno.EALREADY, errno.EINPROGRESS):
        _NextTry.at = time.monotonic() + _PAUSE_S
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # stop trying
