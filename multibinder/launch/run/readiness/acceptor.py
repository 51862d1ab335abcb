"""Connect to a copy, and to no other process that has the same listener.

The kernel gives a client to any process that waits. So who accepted a connection is found before anything is sent on
it, and a connection of another process is closed unused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from multibinder.kernel.descriptors import scan
from multibinder.kernel.tcp_peer import peer_of
from multibinder.kernel.unix_diag import peer_inode
from multibinder.launch.run.readiness.check import ObservedCopy
from multibinder.launch.run.readiness.target import Place, Target
from multibinder.launch.run.tasks import sleep, writable

#: A connection that no process accepts within this time is closed, and another one is tried.
ACCEPT_S = 5.0
#: After this time without an accept, a byte may be sent: with TCP_DEFER_ACCEPT, the kernel waits for one.
_DEFER_S = 0.5
#: The most connections at a time. With one only, a process that the kernel always wakes first would get each.
_MOST = 8
_FIRST_LOOK_S, _LAST_LOOK_S = 0.002, 0.05


class Acceptor:
    """Connects to ``target`` until the copy accepts. ``last`` is what was seen last."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._others = 0
        self._burst = 1
        self.last = ""

    async def connect(
        self, copy: ObservedCopy, first_bytes: bytes = b"", *, answer_suffices: bool = False
    ) -> tuple[socket.socket, bytes] | None:
        """Return a connection that the copy accepted, and what of ``first_bytes`` was sent; None if it did not accept.

        They are sent only where the kernel waits for the first byte of a client. With ``answer_suffices``, a connection
        to the private listener is returned at once. The connection is the caller's.
        """
        place = self._target.place(copy)
        if place is None:
            self.last = f"the copy has no listener {self._target}"
            return None
        connections: list[socket.socket] = []
        try:
            for _ in range(self._burst):
                if (sock := await self._connect(place)) is None:
                    break
                connections.append(sock)
            if not connections:
                return None
            if answer_suffices and self._target.is_private:
                return connections.pop(), b""
            return await self._accepted(copy, connections, first_bytes)
        finally:
            for sock in connections:
                sock.close()

    async def _connect(self, place: Place) -> socket.socket | None:
        try:
            sock = socket.socket(place.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:  # no free descriptor, or no such family
            self.last = f"{self._target} cannot be connected to: {error.strerror}"
            return None
        try:
            number = sock.connect_ex(place.address)
            if number == errno.EINPROGRESS:
                if not await writable(sock.fileno(), ACCEPT_S):
                    number = errno.ETIMEDOUT
                else:
                    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except BaseException:
            sock.close()
            raise
        if not number:
            return sock
        sock.close()
        reason = "its queue is full" if number == errno.EAGAIN else os.strerror(number)
        self.last = f"{self._target} cannot be connected to: {reason}"
        return None

    async def _accepted(
        self, copy: ObservedCopy, connections: list[socket.socket], first_bytes: bytes
    ) -> tuple[socket.socket, bytes] | None:
        """Return the connection that the copy accepts, removed from ``connections``."""
        unknown = list(connections)
        self.last = self.last or f"no process has accepted at {self._target} yet"
        waited_s, look_s, sent = 0.0, _FIRST_LOOK_S, b""
        while unknown and waited_s < ACCEPT_S:
            for sock in list(unknown):
                try:
                    inode = _peer_inode(sock)
                except OSError as error:
                    unknown.remove(sock)
                    self._cannot_look(error)
                    continue
                if inode is None:
                    unknown.remove(sock)
                    self.last = f"{self._target} is in another network namespace, or on another host"
                elif inode:
                    unknown.remove(sock)
                    if scan({inode}, pids=copy.processes()).processes:
                        connections.remove(sock)
                        return sock, sent
                    sock.close()  # a server with one thread accepts the next one then
                    self._another_accepted()
                elif _is_closed(sock):
                    unknown.remove(sock)
                    if self._target.is_private:
                        connections.remove(sock)
                        return sock, sent
                    self.last = f"{self._target} closed the connection before it was seen who accepted it"
            await sleep(look_s)
            waited_s += look_s
            look_s = min(look_s * 2, _LAST_LOOK_S)
            if not sent and first_bytes and waited_s >= _DEFER_S:
                sent = first_bytes[:1]
                for sock in unknown:
                    with contextlib.suppress(OSError):
                        sock.send(sent, socket.MSG_NOSIGNAL)
        if len(unknown) == len(connections):
            self.last = f"no process accepts at {self._target}"
        return None

    def _cannot_look(self, error: OSError) -> None:
        if error.errno == errno.ENOTCONN:
            self.last = f"{self._target} closed the connection"
        else:
            self.last = f"the kernel does not tell who accepts at {self._target}: {error.strerror}"

    def _another_accepted(self) -> None:
        self._others += 1
        self._burst = min(self._burst * 2, _MOST)
        times = f"{self._others} connections" if self._others > 1 else "a connection"
        self.last = f"another process accepted {times} to {self._target}; {{ready}} is an address of this copy alone"


def _peer_inode(sock: socket.socket) -> int | None:
    """Return the inode of the accepted socket; 0 if there is none yet, None if it cannot be seen from here."""
    if sock.family == socket.AF_UNIX:
        return peer_inode(sock)
    peer = peer_of(sock)
    return peer.inode if peer is not None else None


def _is_closed(sock: socket.socket) -> bool:
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
