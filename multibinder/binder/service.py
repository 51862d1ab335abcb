"""The service of admitted clients: read their requests and send their answers, within quotas and turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from multibinder.binder import events
from multibinder.binder.answer import Answer, Reply, refuse, turn_down
from multibinder.binder.caller import Caller
from multibinder.binder.clients import Clients
from multibinder.binder.counters import RequestCounters
from multibinder.binder.deadlines import Deadlines
from multibinder.binder.disconnects import Disconnects
from multibinder.binder.loop import READ, WRITE, Loop
from multibinder.binder.peer import Peer
from multibinder.binder.quotas import Quotas, Refusal
from multibinder.binder.settlements import Settlements
from multibinder.binder.turns import Turns
from multibinder.wire import messages, notices
from multibinder.wire.errors import RemoteProtocolError


class Service:
    """Serve peers that are in ``clients``, each for ``client_turn_s`` seconds of a turn at most.

    ``answer`` is called with a request, its caller, and a function that takes a later answer. It returns the answer, or
    None if the answer comes later. ``settlements`` learns which answers the clients have received. A client
    that exceeds its rate is throttled for ``throttle_s`` seconds. The kernel is asked every ``confirm_s`` seconds
    which clients have read their answers.
    """

    def __init__(
        self,
        loop: Loop,
        answer: Callable[[bytes, Caller, Reply], Answer | None],
        settlements: Settlements,
        *,
        quotas: Quotas,
        counters: RequestCounters,
        clients: Clients,
        turns: Turns,
        deadlines: Deadlines,
        disconnects: Disconnects,
        client_turn_s: float,
        throttle_s: float,
        confirm_s: float,
    ) -> None:
        self._loop = loop
        self._answer = answer
        self._settlements = settlements
        self._quotas = quotas
        self._counters = counters
        self._clients = clients
        self._turns = turns
        self._deadlines = deadlines
        self._disconnects = disconnects
        self._client_turn_s = client_turn_s
        self._throttle_s = throttle_s
        self._confirm_s = confirm_s
        self._draining = False
        # The clients that may have read answers since we asked the kernel.
        self._unconfirmed: dict[Peer, None] = {}

    def begin(self, peer: Peer) -> None:
        """Serve a peer that was admitted, from now on."""
        self._loop.watch(peer.socket, partial(self._ready, peer))
        if self._turns.has_time(peer.user):
            # Its request is often there already, and this saves it a turn of the loop.
            self._serve(peer, READ)
        elif peer.has_input:
            self._turns.enqueue(peer, 0)  # its request came with it from the version before

    def serve_due(self) -> None:
        """Serve the peers that have waited for their turn."""
        if not self._turns:
            return
        for peer, mask in self._turns.take_due():
            self._serve_in_turn(peer, mask)

    def drain(self) -> None:
        """Begin with no more requests. Answers in progress are sent."""
        self._draining = True
        for peer in self._clients.without_answer_in_progress:
            self._watch(peer, None)
            self._turns.remove(peer)

    def _ready(self, peer: Peer) -> None:
        if peer not in self._clients:
            return
        if peer in self._turns or self._turns.must_wait(peer.user):
            mask = peer.mask or 0
            # The kernel would report it again in each turn until it is served. It is watched again then.
            self._watch(peer, None)
            self._turns.enqueue(peer, mask)
        else:
            self._serve_in_turn(peer, peer.mask or 0)

    def _serve_in_turn(self, peer: Peer, mask: int) -> None:
        began = time.monotonic()
        self._serve(peer, mask)
        self._turns.charge(peer.user, time.monotonic() - began)

    def _serve(self, peer: Peer, mask: int) -> None:
        """Serve a peer. What fails costs this peer alone."""
        try:
            self._serve_some(peer, mask)
        except Exception as error:
            self._disconnects.give_up(peer, error)

    def _serve_some(self, peer: Peer, mask: int) -> None:
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
        if self._draining and not peer.backed_up:
            self._watch(peer, None)
            return
        if peer.at_end and not peer.backed_up and peer not in self._turns and not peer.throttled:
            self._disconnects.drop(peer)
            return
        self._keep_track(peer, progress)

    def _answer_some(self, peer: Peer) -> bool:
        """Answer the requests that have arrived, until the client's share of the turn ends.

        Return whether there was a request.
        """
        end = time.monotonic() + self._client_turn_s
        progress = False
        while True:
            # A client that does not read its answers gets no more of them. Its requests stay in the socket's buffer.
            busy = peer.answer_in_progress or peer.throttled or self._draining
            request = None if busy else peer.next_message()
            if request is None:
                return progress
            progress = True
            if peer.unconfirmed and self._settle_earlier(peer, request):
                continue
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
            if time.monotonic() > end and peer.has_input:
                self._turns.enqueue(peer, 0)
                return True

    def _settle_earlier(self, peer: Peer, message: bytes) -> bool:
        """Confirm earlier answers of which the client tells us now. Return whether the message was such a notice."""
        if peer.owes_acknowledgement and (notice := notices.decode_notice(message)) is not None:
            grants = peer.take_noticed(notice.params.id)
            if grants is not None:
                self._settlements.settle(peer.user, grants, received=notice.method == "received")
                return True
        # It may have sent this request before it read its answer; then the kernel has the answer still.
        self._settlements.confirm(peer.user, peer.take_read())
        peer.require_acknowledgements()
        return False

    def _answer_later(self, peer: Peer, request_bytes: int, answer: Answer) -> None:
        """Send the answer to a request that could not be answered at once."""
        if not self._clients.is_served(peer):
            self._settlements.take_back(peer.user, answer.grants)
            return
        peer.awaits_answer = False
        try:
            self._send(peer, request_bytes, answer)
        except OSError:
            self._disconnects.drop(peer)
        except Exception as error:
            self._disconnects.give_up(peer, error)
        else:
            self._serve(peer, 0)

    def _send(self, peer: Peer, request_bytes: int, answer: Answer) -> None:
        """Send an answer, or a refusal if a quota of descriptors in flight would be exceeded."""
        answer_bytes = descriptors = 0
        for text, carried in answer.parts:
            answer_bytes += len(text)
            descriptors += len(carried)
        if descriptors and (refusal := self._clients.in_flight_exceeded(peer.user, descriptors)):
            self._note_refusal(peer, refusal)
            self._settlements.take_back(peer.user, answer.grants)
            sentence = f"Not now: {refusal.sentence}; try again later"
            answer = refuse(answer.id, messages.LIMIT_REACHED, sentence, {"limit": refusal.limit})
        self._quotas.charge(peer.user, request_bytes, answer_bytes)
        peer.send(answer)

    def _throttle(self, peer: Peer) -> None:
        """Read no request of this client for a moment."""

        def resume() -> None:
            if self._clients.is_served(peer):
                peer.throttled = False
                self._turns.enqueue(peer, 0)

        peer.throttled = True
        self._loop.call_later(self._throttle_s, resume)

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
        idle = peer.idle
        self._clients.note_served(peer, answered=progress, idle=idle)
        if peer.unconfirmed and peer.may_have_read:
            self._confirm_soon(peer)
        if not idle or (peer.unconfirmed and peer.owes_acknowledgement):
            self._deadlines.start(peer, time.monotonic())
        self._watch(peer, WRITE if peer.backed_up else READ)

    def _confirm_soon(self, peer: Peer) -> None:
        """Ask the kernel in a moment whether the client has read its answers."""
        if not self._unconfirmed:
            self._loop.call_later(self._confirm_s, self._confirm_read)
        self._unconfirmed[peer] = None

    def _confirm_read(self) -> None:
        asked, self._unconfirmed = self._unconfirmed, {}
        for peer in asked:
            if self._clients.is_served(peer):
                self._settlements.confirm(peer.user, peer.take_read())
                if peer.may_have_read:
                    self._confirm_soon(peer)

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
