"""One client of the control socket: its unfinished request, and the answers that were not sent yet."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from collections import deque
from collections.abc import Sequence

from multibinder.binder.answer import Answer
from multibinder.binder.caller import Caller
from multibinder.binder.client_state import ClientState
from multibinder.binder.listener import Grant
from multibinder.binder.loop import READ
from multibinder.binder.quotas import Quotas
from multibinder.kernel.socket_options import close_without_lingering, inode_of
from multibinder.wire import transport
from multibinder.wire.decoder import Decoder


class Peer:
    """A connection, its input and its output. It notes in ``quotas`` what it buffers and what is in flight to it.

    No method blocks: each sends or receives as much as the kernel allows now. The peer owns ``sock`` until it is
    detached or closed. The constructor raises OSError for a connection that is gone already, and does not own ``sock``
    then. ``state`` is what the version before knew of the client, if that version accepted it.
    """

    def __init__(self, sock: socket.socket, quotas: Quotas, state: ClientState | None = None) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.caller = Caller(sock)
        self.user = quotas.user(self.caller.uid)
        self._quotas = quotas
        self._decoder = Decoder(quotas.limits.request_bytes)
        if state is not None:
            self._decoder.feed(state.input)
        self._unsent: deque[tuple[memoryview, Sequence[int], Sequence[Grant]]] = deque()
        # Bytes of an unfinished request, and descriptors that may not have been received, as noted in the quotas.
        self._buffered = 0
        self._in_flight = 0
        self.at_end = False
        #: The events that the loop watches the socket for; None if it does not watch it.
        self.mask: int | None = READ
        #: A request of this client is in progress; its answer comes later.
        self.awaits_answer = False
        #: This client exceeded its rate; no request of it is read for a moment.
        self.throttled = False

    @property
    def idle(self) -> bool:
        """Return whether no answer is queued for the client, and it has no request in progress."""
        return not self._unsent and not self.awaits_answer and not self._decoder.unfinished

    @property
    def answer_in_progress(self) -> bool:
        """Return whether an answer to the client is queued, or will come later."""
        return bool(self._unsent) or self.awaits_answer

    @property
    def has_input(self) -> bool:
        """Return whether bytes have been received that belong to no answered request."""
        return self._decoder.unfinished

    @property
    def backed_up(self) -> bool:
        """Return whether answers are queued because the client does not read fast enough."""
        return bool(self._unsent)

    @property
    def buffered(self) -> int:
        """Return the bytes of its unfinished request, as of the last ``note_buffered``."""
        return self._buffered

    def receive(self) -> None:
        """Feed the decoder with what has arrived.

        Raises OSError if the peer is gone, and RemoteProtocolError if the kernel had to drop descriptors.
        """
        try:
            arrived, descriptors = transport.receive(self.socket)
        except BlockingIOError:
            return
        # No request of the protocol carries descriptors. Since Linux 6.16 they do not arrive (control_socket.py).
        for descriptor in descriptors:
            close_without_lingering(descriptor)
        if arrived:
            self._decoder.feed(arrived)
        else:
            self.at_end = True

    def next_message(self) -> bytes | None:
        """Return the next message that has arrived, or None. Raises RemoteProtocolError for what cannot become one."""
        return self._decoder.next_message()

    def send(self, answer: Answer) -> None:
        """Queue an answer, and send as much of it as the kernel takes now. Raises OSError if the peer is gone."""
        for index, (message, descriptors) in enumerate(answer.parts):
            # A peer that misses the last part misses descriptors of the grants.
            last = index == len(answer.parts) - 1
            self._unsent.append((memoryview(message), descriptors, answer.grants if last else ()))
        self.flush()

    def flush(self) -> None:
        """Send as much of the queued answers as the kernel takes now. Raises OSError if the peer is gone."""
        while self._unsent:
            rest, descriptors, grants = self._unsent[0]
            try:
                sent = transport.send(self.socket, rest, descriptors)
            except BlockingIOError:
                return
            if descriptors:
                self._note_in_flight(self._in_flight + len(descriptors))
            if sent < len(rest):
                self._unsent[0] = (rest[sent:], (), grants)
            else:
                self._unsent.popleft()

    def discard_unsent(self) -> list[Sequence[Grant]]:
        """Drop the queued answers. Return their grants, which the caller takes back."""
        undelivered = [grants for _, _, grants in self._unsent]
        self._unsent.clear()
        return undelivered

    def discard_input(self) -> None:
        """Drop the bytes of an unfinished request. Nothing can be received after this."""
        self._decoder = Decoder(0)
        self.note_buffered()

    def note_buffered(self) -> int:
        """Note in the quotas the size of the unfinished request. Return the number of bytes by which it has grown."""
        more = self._decoder.held - self._buffered
        if more:
            self._buffered += more
            self._quotas.note_buffered(self.user, more)
        return more

    def note_received(self) -> None:
        """Note in the quotas that nothing is in flight to this peer, if it has received all."""
        if self._in_flight and self._has_received_all():
            self._note_in_flight(0)

    def must_stay_open(self) -> bool:
        """Return whether descriptors are in flight to a client with quotas.

        Only an open socket tells when they are received.
        """
        return bool(self._in_flight) and not self.user.privileged and not self._has_received_all()

    def has_unread_input(self) -> bool:
        """Return whether bytes wait in the socket to be read. A failed socket counts as one with input."""
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False
        except OSError:
            return True

    def detach(self) -> tuple[socket.socket, ClientState]:
        """Give the socket, still connected, to the caller, and what the next version must know of the client."""
        return self.socket, ClientState(inode_of(self.socket), self._decoder.pending)

    def close(self) -> None:
        """Close the connection. Nothing of it counts in the quotas afterwards."""
        self.discard_input()
        self._note_in_flight(0)
        self.socket.close()

    def _note_in_flight(self, descriptors: int) -> None:
        self._quotas.note_in_flight(self.user, descriptors - self._in_flight)
        self._in_flight = descriptors

    def _has_received_all(self) -> bool:
        """Return whether the client has received all that was sent. Also true if the other end is closed."""
        # SIOCOUTQ, unix(7): memory of what a socket sent is charged to it until it is received.
        (unreceived_bytes,) = struct.unpack("i", fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4)))
        return not unreceived_bytes
