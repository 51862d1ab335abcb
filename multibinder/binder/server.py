"""The control server: serve many clients in one thread, and never wait for one of them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence

import msgspec

from multibinder.binder import events
from multibinder.binder.acceptor import Acceptor
from multibinder.binder.admission import Admission
from multibinder.binder.answer import Answer, Reply
from multibinder.binder.caller import Caller
from multibinder.binder.client_state import ClientState
from multibinder.binder.clients import Clients
from multibinder.binder.counters import RequestCounters
from multibinder.binder.deadlines import Deadlines
from multibinder.binder.disconnects import Disconnects
from multibinder.binder.handoffs import Handoffs
from multibinder.binder.loop import Loop
from multibinder.binder.peer import Peer
from multibinder.binder.quotas import Quotas
from multibinder.binder.service import Service
from multibinder.binder.settlements import Settlements
from multibinder.binder.slices import Slices
from multibinder.binder.turns import USER_TURN_S

#: At most this many clients whose deadline has passed are dropped in one turn of the loop.
_DROPPED_PER_TURN = 16


class ServerTimings(msgspec.Struct, frozen=True):
    """Times of the server, in seconds.

    ``user_turn_s``       the share of one user in a turn of the loop.
    ``client_turn_s``     of that, the share of one client, so that a user's clients take turns too.
    ``shortage_pause_s``  the pause after accept(2) failed for lack of descriptors or memory.
    ``throttle_s``        the pause of a client that exceeded its rate.
    ``linger_s``          the interval of checks whether clients have received their descriptors.
    ``drain_s``           how long answers in progress are waited for before an upgrade. Other clients wait as long.
    """

    user_turn_s: float = USER_TURN_S
    client_turn_s: float = 0.0001
    shortage_pause_s: float = 1.0
    throttle_s: float = 0.1
    linger_s: float = 1.0
    drain_s: float = 2.0


DEFAULT_TIMINGS = ServerTimings()


class ControlServer:
    """Serve the clients of ``listening`` on ``loop`` until ``stop`` or ``drain``. The sockets stay their caller's.

    ``answer`` is called with a request, its caller, and a function that takes a later answer. It returns the answer, or
    None if the answer comes later. ``handoffs`` has the grants that the clients have to confirm.
    """

    def __init__(
        self,
        loop: Loop,
        listening: Sequence[socket.socket],
        *,
        quotas: Quotas,
        slices: Slices,
        counters: RequestCounters,
        answer: Callable[[bytes, Caller, Reply], Answer | None],
        handoffs: Handoffs,
        timings: ServerTimings = DEFAULT_TIMINGS,
    ) -> None:
        self._loop = loop
        self._quotas = quotas
        self._counters = counters
        self._handoffs = handoffs
        settlements = Settlements(handoffs, slices)
        self._clients = Clients(quotas)
        self._admission = Admission(self._clients, quotas)
        self._turns = slices.turns
        self._deadlines = Deadlines(quotas.limits.timeout_s)
        self._disconnects = Disconnects(
            loop, self._clients, self._deadlines, self._turns, counters, handoffs, settlements, timings.linger_s
        )
        self._service = Service(
            loop,
            answer,
            settlements,
            quotas=quotas,
            counters=counters,
            clients=self._clients,
            turns=self._turns,
            deadlines=self._deadlines,
            disconnects=self._disconnects,
            client_turn_s=timings.client_turn_s,
            throttle_s=timings.throttle_s,
            confirm_s=timings.linger_s,
        )
        self._acceptor = Acceptor(
            loop,
            listening,
            self.accept,
            quotas,
            turn_s=timings.user_turn_s,
            shortage_pause_s=timings.shortage_pause_s,
        )
        self._drain_s = timings.drain_s
        self._stopping = False
        self._drain_deadline: float | None = None

    def run(self) -> list[tuple[socket.socket, ClientState]]:
        """Serve. Return the clients to pass on after ``drain``, and what is known of them; the caller owns them."""
        self._acceptor.start()
        try:
            self._loop.run(self._finish_turn)
            return [] if self._stopping else [self._detach(peer) for peer in self._clients.to_pass_on]
        finally:
            for peer in list(self._clients):
                self._disconnects.interrupt(peer, is_upgrading=not self._stopping)

    def listen_on(self, listening: Sequence[socket.socket]) -> None:
        """Accept clients on these sockets instead of the former ones. They stay their caller's."""
        self._acceptor.listen_on(listening)

    def stop(self) -> None:
        """Make ``run`` return at the end of this turn, and close all clients."""
        self._stopping = True
        self._loop.stop()

    def drain(self) -> None:
        """Take no new requests. ``run`` returns when the answers in progress are sent, or after ``drain_s``.

        A request that has not arrived whole is not in progress. It is passed on as it is.
        """
        self._drain_deadline = time.monotonic() + self._drain_s
        self._acceptor.stop()
        self._service.drain()

    def accept(self, sock: socket.socket, state: ClientState | None = None) -> None:
        """Admit a connected client, or turn it away. Takes the socket. What fails costs this client alone.

        ``state`` is what the version before knew of a client that it passed on.
        """
        self._counters.count_connection()
        try:
            peer = Peer(sock, self._quotas, state)
        except OSError as error:
            events.debug("client-gone", why=error.strerror)
            sock.close()
            return
        try:
            self._admit(peer)
        except Exception as error:
            self._disconnects.give_up(peer, error)

    def _admit(self, peer: Peer) -> None:
        began = time.monotonic()
        verdict = self._admission.decide(peer.user)
        if verdict.evict is not None:
            self._disconnects.evict(verdict.evict)
        if verdict.refusal is not None:
            self._disconnects.turn_away(peer, verdict.refusal)
        else:
            self._clients.add(peer)
            self._deadlines.start(peer, began)
            if self._handoffs and (inherited := self._handoffs.of(peer.caller.connection)):
                peer.inherit_unconfirmed(inherited)
            self._service.begin(peer)
        self._turns.charge(peer.user, time.monotonic() - began)

    def _finish_turn(self) -> float | None:
        """Serve the queue, enforce deadlines. Return when the next turn must begin, as ``Loop.run`` has it."""
        self._service.serve_due()
        self._enforce_deadlines()
        if self._drain_deadline is not None and (
            self._clients.no_answer_in_progress or self._drain_deadline <= time.monotonic()
        ):
            self._loop.stop()
        if self._turns:
            return 0
        first, drain = self._deadlines.first, self._drain_deadline
        return drain if first is None else first if drain is None else min(first, drain)

    def _detach(self, peer: Peer) -> tuple[socket.socket, ClientState]:
        self._clients.remove(peer)
        return peer.detach()

    def _enforce_deadlines(self) -> None:
        if self._deadlines.first is None:
            return
        for peer in self._deadlines.take_expired(time.monotonic(), _DROPPED_PER_TURN):
            try:
                if peer.owes_acknowledgement and peer.has_unread_input():
                    # Its word is perhaps in the socket's buffer: the client must not pay for a slow turn of ours.
                    self._deadlines.start(peer, time.monotonic())
                else:
                    self._disconnects.time_out(peer, self._quotas.limits.timeout_s)
            except Exception as error:
                self._disconnects.give_up(peer, error)
