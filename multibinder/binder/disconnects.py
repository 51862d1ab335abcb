"""End connections: send a last answer, take back grants, and close the socket at once or after lingering."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable
from functools import partial

from multibinder.binder import events
from multibinder.binder.admission import answer_to_evicted, answer_to_turned_away
from multibinder.binder.answer import Answer, refuse
from multibinder.binder.clients import Clients
from multibinder.binder.counters import RequestCounters
from multibinder.binder.deadlines import Deadlines
from multibinder.binder.failures import callback_failed
from multibinder.binder.handoffs import Handoffs
from multibinder.binder.loop import Loop
from multibinder.binder.peer import Peer
from multibinder.binder.quotas import Refusal
from multibinder.binder.settlements import Settlements
from multibinder.binder.turns import Turns
from multibinder.kernel.raised import told
from multibinder.wire import messages
from multibinder.wire.errors import RemoteProtocolError


class Disconnects:
    """End connections, and log and count why.

    ``settlements`` takes back the grants of answers that their client never received. Lingering clients are checked
    every ``linger_s`` seconds, and closed when they have received the descriptors that are in flight to them.
    """

    def __init__(
        self,
        loop: Loop,
        clients: Clients,
        deadlines: Deadlines,
        turns: Turns,
        counters: RequestCounters,
        handoffs: Handoffs,
        settlements: Settlements,
        linger_s: float,
    ) -> None:
        self._loop = loop
        self._clients = clients
        self._deadlines = deadlines
        self._turns = turns
        self._counters = counters
        self._handoffs = handoffs
        self._settlements = settlements
        self._linger_s = linger_s

    def turn_away(self, peer: Peer, refusal: Refusal) -> None:
        """Close the connection of a client that is not admitted."""
        events.complaint("turned-away", peer.caller, clients=len(self._clients), why=refusal.sentence)
        self._counters.count_refusal(refusal.limit)
        _send_last(peer, answer_to_turned_away(refusal))
        self._settle(peer)
        peer.close()

    def evict(self, peer: Peer) -> None:
        """Close the connection of a client to make room for another."""
        events.complaint("evicted", peer.caller, clients=len(self._clients))
        self._counters.count_eviction()
        if not peer.idle:
            _send_last(peer, answer_to_evicted())
        self.close(peer)

    def time_out(self, peer: Peer, timeout_s: float) -> None:
        """Drop a client whose deadline has passed."""
        if peer.owes_acknowledgement and peer.idle:
            why = f"did not acknowledge its listeners within {timeout_s:g} s"
            events.complaint("timed-out", peer.caller, why=why)
            self._counters.count_refusal("timeout")
            _send_last(peer, refuse(None, messages.LIMIT_REACHED, f"Taken back: this client {why}"))
        elif peer.idle:
            events.debug("silent", pid=peer.caller.pid, uid=peer.caller.uid)
        else:
            why = "does not read its answer" if peer.backed_up else "sent half a request"
            events.complaint("timed-out", peer.caller, why=why)
            self._counters.count_refusal("timeout")
            text = f"Invalid request: incomplete after {timeout_s:g} s"
            _send_last(peer, refuse(None, messages.INVALID_REQUEST, text))
        self.drop(peer)

    def exceed_quota(self, peer: Peer, refusal: Refusal) -> None:
        """Drop a client whose unfinished request exceeds a quota."""
        events.complaint("turned-away", peer.caller, why=refusal.sentence)
        self._counters.count_refusal(refusal.limit)
        text = f"Not now: {refusal.sentence}; try again later"
        _send_last(peer, refuse(None, messages.LIMIT_REACHED, text, {"limit": refusal.limit}))
        self.drop(peer)

    def fail(self, peer: Peer, error: RemoteProtocolError | OSError) -> None:
        """Drop a client that broke the protocol, or whose socket failed."""
        if isinstance(error, RemoteProtocolError):
            events.complaint("protocol-error", peer.caller, why=error)
            self._counters.count_refusal("protocol")
            _send_last(peer, refuse(None, messages.INVALID_REQUEST, f"Invalid request: {error}"))
        elif error.errno == errno.ETOOMANYREFS:
            # unix(7): descriptors that any client has not received yet count against our RLIMIT_NOFILE.
            events.complaint("cannot-hand-over", peer.caller, error=error.strerror)
            self._counters.count_refusal("in_flight")
            self._discard_unsent(peer)
            text = (
                "clients that do not read hold too many descriptors of this binder; raise LimitNOFILE= in its unit, "
                "or find them; try again"
            )
            _send_last(peer, refuse(None, messages.LIMIT_REACHED, text, {"limit": "in_flight"}))
        else:
            events.debug("client-gone", pid=peer.caller.pid, why=error.strerror)
        self.drop(peer)

    def give_up(self, peer: Peer, error: Exception) -> None:
        """Drop a client whose service failed unexpectedly: a resource is short, or a bug. Never raises."""
        unexpected = told(error)
        events.limited(
            events.error,
            "client-failed",
            peer.user,
            pid=peer.caller.pid,
            uid=peer.caller.uid,
            **unexpected,
            done="dropped",
        )
        text = f"Internal error: {unexpected['error']}; the binder's log says more"
        try:
            _send_last(peer, refuse(None, messages.INTERNAL_ERROR, text))
            self.drop(peer)
        except Exception as another:
            callback_failed(self.drop, another)
            self._loop.unwatch(peer.socket)
            self._clients.remove(peer)
            peer.close()

    def drop(self, peer: Peer) -> None:
        """End the connection of a client. It lingers if descriptors are in flight to it.

        Until it receives them or closes its end, they and the client count against the quotas of its user.
        """
        if not peer.must_stay_open():
            self.close(peer)
            return
        self._forget(peer)
        if peer.owes_acknowledgement:
            self._settle(peer)
        peer.discard_input()
        with contextlib.suppress(OSError):
            peer.socket.shutdown(socket.SHUT_RDWR)
        if not self._clients.lingering:
            self._loop.call_later(self._linger_s, self._close_lingering)
        self._clients.linger(peer)

    def interrupt(self, peer: Peer, *, is_upgrading: bool) -> None:
        """Close the connection of a client whose answer does not come before the end of this version."""
        if is_upgrading and self._clients.is_served(peer) and not peer.backed_up:
            text = "Not now: the binder is being upgraded; try again"
            _send_last(peer, refuse(None, messages.LIMIT_REACHED, text, {"limit": "upgrade"}))
        self.close(peer)

    def close(self, peer: Peer) -> None:
        """Close the connection of a client at once."""
        self._forget(peer)
        self._settle(peer)
        self._clients.remove(peer)
        peer.close()

    def _close_lingering(self) -> None:
        try:
            for peer in self._clients.lingering:
                if not peer.must_stay_open():
                    self.close(peer)
        finally:
            if self._clients.lingering:
                self._loop.call_later(self._linger_s, self._close_lingering)

    def _forget(self, peer: Peer) -> None:
        self._discard_unsent(peer)
        self._loop.unwatch(peer.socket)
        peer.mask = None
        self._deadlines.clear(peer)
        self._turns.remove(peer)

    def _discard_unsent(self, peer: Peer) -> None:
        for grants in peer.discard_unsent():
            self._try(partial(self._settlements.take_back, peer.user, grants))

    def _settle(self, peer: Peer) -> None:
        """Confirm what the client has received, and take the rest back, also what waits for the keeper."""
        if not self._handoffs or not (pending := self._handoffs.of(peer.caller.connection)):
            return

        def settle() -> None:
            if peer.owes_acknowledgement:
                for notice in peer.last_notices():
                    if grants := peer.take_noticed(notice.params.id):
                        self._settlements.settle(peer.user, grants, received=notice.method == "received")
            self._settlements.confirm(peer.user, peer.take_read_at_end())
            self._settlements.take_back(peer.user, pending)

        self._try(settle)

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # the client must end all the same, and so must its other grants
            callback_failed(step, error)


def _send_last(peer: Peer, answer: Answer) -> None:
    """Send a last answer to a client that is about to be dropped, if it takes it at once."""
    with contextlib.suppress(OSError):
        peer.send(answer)
