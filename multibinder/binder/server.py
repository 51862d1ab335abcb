"""The control server: serve many clients in one thread, and never wait for one of them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from multibinder.binder import events
from multibinder.binder.acceptor import Acceptor
from multibinder.binder.admission import Admission
from multibinder.binder.answer import Answer, Reply, refuse, turn_down
from multibinder.binder.caller import Caller
from multibinder.binder.clients import Clients
from multibinder.binder.counters import RequestCounters
from multibinder.binder.deadlines import Deadlines
from multibinder.binder.disconnects import Disconnects
from multibinder.binder.listener import Grant
from multibinder.binder.loop import READ, WRITE, Loop
from multibinder.binder.peer import Peer
from multibinder.binder.quotas import Quotas, Refusal
from multibinder.binder.turns import Turns
from multibinder.wire import messages
from multibinder.wire.errors import RemoteProtocolError

#: At most this many clients whose deadline has passed are dropped in one turn of the loop.
_DROPPED_PER_TURN = 16


class ServerTimings(msgspec.Struct, frozen=True):
    """Times of the server, in seconds.

    ``user_turn_s``       the share of one user in a turn of the loop.
    ``client_turn_s``     of that, the share of one client, so that a user's clients take turns too.
    ``shortage_pause_s``  the pause after accept(2) failed for lack of descriptors or memory.
    ``throttle_s``        the pause of a client that exceeded its rate.
    ``linger_s``          the interval of checks for lingering clients that have received their descriptors.
    """

    user_turn_s: float = 0.0005
    client_turn_s: float = 0.0001
    shortage_pause_s: float = 1.0
    throttle_s: float = 0.1
    linger_s: float = 1.0


DEFAULT_TIMINGS = ServerTimings()


class ControlServer:
    """Serve the clients of ``listening`` on ``loop`` until ``stop`` or ``drain``. ``listening`` stays its caller's.

    ``answer`` is called with a request, its caller, and a function that takes a later answer. It returns the answer, or
    None if the answer comes later. ``take_back`` gets the grants of an answer that its client never received.
    """

    def __init__(
        self,
        loop: Loop,
        listening: socket.socket,
        *,
        quotas: Quotas,
        counters: RequestCounters,
        answer: Callable[[bytes, Caller, Reply], Answer | None],
        take_back: Callable[[Sequence[Grant]], None],
        timings: ServerTimings = DEFAULT_TIMINGS,
    ) -> None:
        self._loop = loop
        self._quotas = quotas
        self._counters = counters
        self._answer = answer
        self._take_back = take_back
        self._timings = timings
        self._clients = Clients(quotas)
        self._admission = Admission(self._clients, quotas)
        self._turns = Turns(loop, timings.user_turn_s)
        self._deadlines = Deadlines(quotas.limits.timeout_s)
        self._disconnects = Disconnects(
            loop, self._clients, self._deadlines, self._turns, counters, take_back, timings.linger_s
        )
        self._acceptor = Acceptor(
            loop,
            listening,
            self.accept,
            quotas,
            turn_s=timings.user_turn_s,
            shortage_pause_s=timings.shortage_pause_s,
        )
        self._stopping = False
        self._drain_deadline: float | None = None

    def run(self) -> list[socket.socket]:
        """Serve. Return the idle clients that are left after ``drain``; the caller owns them."""
        self._acceptor.start()
        try:
            self._loop.run(self._finish_turn)
            return [] if self._stopping else [self._detach(peer) for peer in self._clients.idle]
        finally:
            for peer in list(self._clients):
                self._disconnects.close(peer)

    def stop(self) -> None:
        """Make ``run`` return at the end of this turn, and close all clients."""
        self._stopping = True
        self._loop.stop()

    def drain(self) -> None:
        """Take no new requests. ``run`` returns when those in progress are answered, or after the timeout."""
        self._drain_deadline = time.monotonic() + self._quotas.limits.timeout_s
        self._acceptor.stop()
        for peer in self._clients.idle:
            self._watch(peer, None)

    def accept(self, sock: socket.socket) -> None:
        """Admit a connected client, or turn it away. Takes the socket."""
        began = time.monotonic()
        self._counters.count_connection()
        peer = Peer(sock, self._quotas)
        verdict = self._admission.decide(peer.user)
        if verdict.evict is not None:
            self._disconnects.evict(verdict.evict)
        if verdict.refusal is not None:
            self._disconnects.turn_away(peer, verdict.refusal)
        else:
            self._clients.add(peer)
            self._loop.watch(sock, partial(self._ready, peer))
            self._deadlines.start(peer, began)
            if self._turns.has_time(peer.user):
                # Its request is often there already, and this saves it a turn of the loop.
                self._serve(peer, READ)
        self._turns.charge(peer.user, time.monotonic() - began)

    def _finish_turn(self) -> float | None:
        """Serve the queue, enforce deadlines. Return when the next turn must begin, as ``Loop.run`` has it."""
        for peer, mask in self._turns.take_due():
            self._serve_in_turn(peer, mask)
        self._enforce_deadlines()
        if self._drain_deadline is not None and (self._clients.all_idle or self._drain_deadline <= time.monotonic()):
            self._loop.stop()
        if self._turns:
            return 0
        return min((at for at in (self._deadlines.first, self._drain_deadline) if at is not None), default=None)

    def _detach(self, peer: Peer) -> socket.socket:
        self._clients.remove(peer)
        return peer.detach()

    def _ready(self, peer: Peer) -> None:
        if peer not in self._clients or peer in self._turns:
            return
        if self._turns.must_wait(peer.user):
            self._turns.enqueue(peer, peer.mask or 0)
        else:
            self._serve_in_turn(peer, peer.mask or 0)

    def _serve_in_turn(self, peer: Peer, mask: int) -> None:
        began = time.monotonic()
        self._serve(peer, mask)
        self._turns.charge(peer.user, time.monotonic() - began)

    def _serve(self, peer: Peer, mask: int) -> None:
        try:
            if mask == WRITE:
                peer.flush()
            if mask == READ:
                peer.receive()
            progress = self._answer_some(peer)
        except (RemoteProtocolError, OSError) as error:
            self._disconnects.fail(peer, error)
            return
        if peer.note_buffered() > 0 and self._enforce_buffer_quotas(peer) is peer:
            return
        if peer.at_end and not peer.backed_up and peer not in self._turns and not peer.throttled:
            self._disconnects.drop(peer)
            return
        self._keep_track(peer, progress)

    def _answer_some(self, peer: Peer) -> bool:
        """Answer the requests that have arrived, until the client's share of the turn ends.

        Return whether there was a request.
        """
        end = time.monotonic() + self._timings.client_turn_s
        progress = False
        while True:
            # A client that does not read its answers gets no more of them. Its requests stay in the socket's buffer.
            busy = peer.backed_up or peer.awaits_answer or peer.throttled
            request = None if busy else peer.next_message()
            if request is None:
                return progress
            progress = True
            if refusal := self._quotas.rate_exceeded(peer.user):
                self._note_refusal(peer, refusal)
                self._throttle(peer)
                peer.send(turn_down(request, *refusal))
                return True
            answer = self._answer(request, peer.caller, partial(self._answer_later, peer, len(request)))
            if answer is None:
                peer.awaits_answer = True
            else:
                self._send(peer, len(request), answer)
            if time.monotonic() > end:
                break
        self._turns.enqueue(peer, 0)
        return True

    def _answer_later(self, peer: Peer, request_bytes: int, answer: Answer) -> None:
        """Send the answer to a request that could not be answered at once."""
        if not self._clients.is_served(peer):
            self._take_back(answer.grants)
            return
        peer.awaits_answer = False
        try:
            self._send(peer, request_bytes, answer)
        except OSError:
            self._disconnects.drop(peer)
        else:
            self._serve(peer, 0)

    def _send(self, peer: Peer, request_bytes: int, answer: Answer) -> None:
        """Send an answer, or a refusal if a quota of descriptors in flight would be exceeded."""
        descriptors = sum(len(carried) for _, carried in answer.parts)
        if descriptors and (refusal := self._clients.in_flight_exceeded(peer.user, descriptors)):
            self._note_refusal(peer, refusal)
            self._take_back(answer.grants)
            text = f"Not now: {refusal.sentence}; try again later"
            answer = refuse(answer.id, messages.LIMIT_REACHED, text, {"limit": refusal.limit})
        self._quotas.charge(peer.user, request_bytes, sum(len(text) for text, _ in answer.parts))
        peer.send(answer)

    def _throttle(self, peer: Peer) -> None:
        """Read no request of this client for a moment."""

        def resume() -> None:
            if self._clients.is_served(peer):
                peer.throttled = False
                self._turns.enqueue(peer, 0)

        peer.throttled = True
        self._loop.call_later(self._timings.throttle_s, resume)

    def _enforce_buffer_quotas(self, peer: Peer) -> Peer | None:
        """Drop a client if unfinished requests exceed a quota, and return it.

        For the quota in total, this is the client with the largest request of the user that buffers most. A small
        request is not refused because of the large ones of others.
        """
        if refusal := self._quotas.buffered_per_uid_exceeded(peer.user):
            victim = peer
        elif refusal := self._quotas.buffered_exceeded():
            victim = self._clients.most_buffered()
        else:
            return None
        self._disconnects.exceed_quota(victim, refusal)
        return victim

    def _note_refusal(self, peer: Peer, refusal: Refusal) -> None:
        events.complaint("turned-away", peer.caller, why=refusal.sentence)
        self._counters.count_refusal(refusal.limit)

    def _keep_track(self, peer: Peer, progress: bool) -> None:
        """Update the deadline of a peer that was served, its place among the idle ones, and the events to watch for."""
        if progress:
            self._deadlines.clear(peer)
        if peer.awaits_answer or peer.throttled:
            # It waits for us, so it has no deadline. Requests that it sends meanwhile stay in the socket's buffer.
            self._clients.note_served(peer, answered=progress, idle=False)
            self._deadlines.clear(peer)
            self._watch(peer, None)
            return
        self._clients.note_served(peer, answered=progress, idle=peer.idle)
        if not peer.idle:
            self._deadlines.start(peer, time.monotonic())
        if peer.idle and self._drain_deadline is not None:
            self._watch(peer, None)
        else:
            self._watch(peer, WRITE if peer.backed_up else READ)

    def _watch(self, peer: Peer, mask: int | None) -> None:
        if mask == peer.mask:
            return
        if mask is None:
            self._loop.unwatch(peer.socket)
        elif peer.mask is None:
            self._loop.watch(peer.socket, partial(self._ready, peer), mask)
        else:
            self._loop.watch_for(peer.socket, mask)
        peer.mask = mask

    def _enforce_deadlines(self) -> None:
        for peer in self._deadlines.take_expired(time.monotonic(), _DROPPED_PER_TURN):
            self._disconnects.time_out(peer, self._quotas.limits.timeout_s)
