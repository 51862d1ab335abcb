"""One client of the control socket: its unfinished request, and the answers that were not sent yet."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import socket
import struct
import termios
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from multibinder.binder.answer import Answer
from multibinder.binder.caller import Caller
from multibinder.binder.client_state import ClientState
from multibinder.binder.listener import Grant
from multibinder.binder.loop import READ
from multibinder.binder.quotas import Quotas
from multibinder.kernel.socket_options import inode_of, refuse_descriptors
from multibinder.wire import messages, notices, transport
from multibinder.wire.decoder import Decoder
from multibinder.wire.errors import DescriptorsLost, RemoteProtocolError

#: A client that acknowledges may leave at most this many answers without an acknowledgement.
_UNACKNOWLEDGED_MAX = 1000


class Handed(NamedTuple):
    """The pending grants of one answer that was sent. ``acknowledge``: the client has to say that it received them."""

    grants: Sequence[Grant]
    acknowledge: bool


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
            refuse_descriptors(sock)  # what the version before has permitted is not known here
        # Each part with its answer if it is the last one: a peer that misses it misses descriptors of the grants.
        self._unsent: deque[tuple[memoryview, Sequence[int], Answer | None]] = deque()
        #: The answers that were sent and whose grants are not confirmed yet.
        self.unconfirmed: list[Handed] = []
        self._was_reset = False
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
        is_between = not self._unsent and not self.awaits_answer and not self._decoder.unfinished
        return is_between and not self.caller.intake.is_open

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
        except DescriptorsLost as error:
            if not self.caller.intake.is_open:
                raise
            self.caller.intake.note_lost()
            arrived, descriptors = error.arrived, []
        except ConnectionResetError:
            self._was_reset = True
            raise
        if descriptors:
            self.caller.intake.take_in(descriptors)
        if arrived:
            self._decoder.feed(arrived)
        else:
            self.at_end = True

    def next_message(self) -> bytes | None:
        """Return the next message that has arrived, or None. Raises RemoteProtocolError for what cannot become one."""
        message = self._decoder.next_message()
        if message is not None:
            self.caller.intake.end_message()
        return message

    def send(self, answer: Answer) -> None:
        """Queue an answer, and send as much of it as the kernel takes now. Raises OSError if the peer is gone."""
        last = len(answer.parts) - 1
        for index, (message, descriptors) in enumerate(answer.parts):
            self._unsent.append((memoryview(message), descriptors, answer if index == last else None))
        self.flush()

    def flush(self) -> None:
        """Send as much of the queued answers as the kernel takes now. Raises OSError if the peer is gone."""
        while self._unsent:
            rest, descriptors, answer = self._unsent[0]
            try:
                sent = transport.send(self.socket, rest, descriptors)
            except BlockingIOError:
                return
            if descriptors:
                self._note_in_flight(self._in_flight + len(descriptors))
            if sent < len(rest):
                self._unsent[0] = (rest[sent:], (), answer)
                continue
            self._unsent.popleft()
            if answer is not None:
                self._note_sent(answer)

    def discard_unsent(self) -> list[Sequence[Grant]]:
        """Drop the queued answers. Return their grants, which the caller takes back."""
        undelivered = [answer.grants for _, _, answer in self._unsent if answer is not None]
        self._unsent.clear()
        return undelivered

    def inherit_unconfirmed(self, grants: Iterable[Grant]) -> None:
        """Take over the pending grants of this connection from the version before, which has sent their answers."""
        by_answer: dict[tuple[object, bool], list[Grant]] = {}
        for grant in grants:
            by_answer.setdefault((grant.receiver.request, grant.receiver.acknowledges), []).append(grant)
        self.unconfirmed = [Handed(of_one, acknowledge) for (_, acknowledge), of_one in by_answer.items()]
        self._note_in_flight(sum(len(handed.grants) for handed in self.unconfirmed))

    @property
    def owes_acknowledgement(self) -> bool:
        """Return whether the client has to say that it holds the descriptors of an answer."""
        return any(handed.acknowledge for handed in self.unconfirmed)

    @property
    def may_have_read(self) -> bool:
        """Return whether only the kernel will tell that the client has received an answer."""
        return any(handed.grants and not handed.acknowledge for handed in self.unconfirmed)

    def require_acknowledgements(self) -> None:
        """Raise RemoteProtocolError if the client has left too many answers without an acknowledgement."""
        if len(self.unconfirmed) > _UNACKNOWLEDGED_MAX:
            raise RemoteProtocolError(f"{len(self.unconfirmed)} answers were not acknowledged")

    def take_noticed(self, request: messages.Id) -> Sequence[Grant] | None:
        """Take out the answer to a request that the client acknowledges. None if there is no such answer."""
        for index, handed in enumerate(self.unconfirmed):
            if handed.acknowledge and handed.grants[0].receiver.request == request:
                del self.unconfirmed[index]
                return handed.grants
        return None

    def take_read(self) -> list[Grant]:
        """Take out the grants that the client has received, as far as the kernel can tell.

        Those that it has to acknowledge are not among them.
        """
        if not self._has_received_all():
            return []
        return self._take_unacknowledged()

    def take_read_at_end(self) -> list[Grant]:
        """Take out the grants that the client has received, at the end of the connection.

        If it ended with an answer unread, that was the last one (ECONNRESET; unix_release_sock() in the kernel).
        """
        if self.unconfirmed and self._ended_unread():
            self.unconfirmed.pop()
        return self._take_unacknowledged()

    def last_notices(self) -> Iterator[notices.Notice]:
        """Receive what the client has sent, and return the notices in it. It cannot send any more then.

        It learns from its next sendmsg(2), which fails, that an acknowledgement came too late.
        """
        with contextlib.suppress(OSError, RemoteProtocolError):
            self.socket.shutdown(socket.SHUT_RD)
            while not self.at_end:
                self.receive()
                while (message := self.next_message()) is not None:
                    if (notice := notices.decode_notice(message)) is not None:
                        yield notice

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
        """Return whether descriptors are in flight to a client with quotas, or to one that has not confirmed them.

        Only an open socket tells when they are received.
        """
        if not self._in_flight or (self.user.privileged and not self.unconfirmed):
            return False
        return not self._has_received_all()

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
        self.caller.intake.close()
        return self.socket, ClientState(inode_of(self.socket), self._decoder.pending)

    def close(self) -> None:
        """Close the connection. Nothing of it counts in the quotas afterwards."""
        self.discard_input()
        self._note_in_flight(0)
        self.caller.intake.close()
        self.socket.close()

    def _note_sent(self, answer: Answer) -> None:
        pending = [grant for grant in answer.grants if grant.is_pending]
        if pending or (self.unconfirmed and self.unconfirmed[-1].grants):
            # One without grants is noted too: an answer before it is not the last one.
            self.unconfirmed.append(Handed(pending, answer.acknowledge and bool(pending)))

    def _take_unacknowledged(self) -> list[Grant]:
        taken = [grant for handed in self.unconfirmed if not handed.acknowledge for grant in handed.grants]
        self.unconfirmed = [handed for handed in self.unconfirmed if handed.acknowledge]
        return taken

    def _ended_unread(self) -> bool:
        """Return whether the client has closed its end before it read all that was sent."""
        if not self._was_reset:
            self._was_reset = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
        return self._was_reset

    def _note_in_flight(self, descriptors: int) -> None:
        self._quotas.note_in_flight(self.user, descriptors - self._in_flight)
        self._in_flight = descriptors

    def _has_received_all(self) -> bool:
        """Return whether the client has received all that was sent. Also true if the other end is closed."""
        # SIOCOUTQ, unix(7): memory of what a socket sent is charged to it until it is received.
        (unreceived_bytes,) = struct.unpack("i", fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4)))
        return not unreceived_bytes
