"""Read and change what all holders of a Unix socket share: shutdown(2), and connect(2) of a datagram socket."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket

#: The abstract names of the sockets to which silenced ones are connected begin so.
_NOBODY = b"\0multibinder-nobody-"


def is_shut_down(sock: socket.socket) -> bool:
    """Return whether a holder has ended receiving, for which a listener accepts nobody (unix_poll()).

    SO_ACCEPTCONN is still 1 then, and listen(2) succeeds.
    """
    look = select.poll()
    look.register(sock, select.POLLRDHUP)
    return bool(look.poll(0))


def has_waiting(sock: socket.socket) -> bool:
    """Return whether a client or a datagram waits."""
    look = select.poll()
    look.register(sock, select.POLLIN)
    return bool(look.poll(0))


def peer_name(sock: socket.socket) -> str | bytes | None:
    """Return the name of the socket that a datagram socket is connected to; None if it is not connected."""
    try:
        name: str | bytes = sock.getpeername()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        return None
    return name


def silence(sock: socket.socket) -> None:
    """Keep datagrams from a socket, also those of senders that are connected to it: they get EPERM.

    It is connected to a socket that has gone (unix_may_send()). What waits stays in its queue, and poll(2) reports
    nothing new for it, unlike after shutdown(2). Raises OSError.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nobody:
        nobody.bind(_NOBODY + os.urandom(8).hex().encode())
        sock.connect(nobody.getsockname())


def is_silenced(sock: socket.socket) -> bool:
    """Return whether ``silence`` has succeeded for this socket."""
    name = peer_name(sock)
    return isinstance(name, bytes) and name.startswith(_NOBODY)


def let_everybody_send(sock: socket.socket) -> None:
    """Undo connect(2) of a datagram socket. The kernel drops what waits in its queue (unix_dgram_disconnected())."""
    from multibinder.kernel.disconnect import disconnect  # loaded before: see there

    disconnect(sock)


def refuse_waiting_clients(sock: socket.socket) -> int:
    """Accept and close the connections in the queue of a listener that was shut down. Return their number.

    accept(2) does not block then. Else these clients would wait as long as any process holds the listener.
    """
    count = 0
    with contextlib.suppress(OSError):  # EINVAL: the queue is empty
        while True:
            client, _ = sock.accept()
            client.close()
            count += 1
    return count


def longest_datagram_queue() -> int:
    """Return how many datagrams a new socket may have in its queue; 0 if that cannot be read."""
    try:
        with open("/proc/sys/net/unix/max_dgram_qlen") as setting:
            return int(setting.read())
    except OSError:
        return 0
