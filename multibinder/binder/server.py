"""The control server: one thread, one selector, and nobody waits for anybody else's client."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from functools import partial

from multibinder.binder import events
from multibinder.binder.answer import Answer, refuse, turn_down
from multibinder.binder.counters import RequestCounters
from multibinder.binder.loop import READ, WRITE, Loop
from multibinder.binder.methods import Methods
from multibinder.binder.peer import Peer
from multibinder.binder.quotas import Refusal, User, Users
from multibinder.binder.store import ListenerStore
from multibinder.wire import messages
from multibinder.wire.decoder import Decoder
from multibinder.wire.errors import RemoteProtocolError

#: What is done in one turn of the loop: for one uid, and of that for each of its clients, so that they take turns too;
#: connections taken (whose uid is not known before), deadlines that have passed.
_TURN_S = 0.0005
_CLIENT_TURN_S = 0.0001
_ACCEPTED_PER_TURN = 16
_DROPPED_PER_TURN = 16
#: accept(2) fails with these while the system is short of something; the connection stays in the queue.
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_SHORTAGE_PAUSE_S = 1.0
#: For who asked too fast, until it is heard again.
_REST_S = 0.1
#: Between two looks at who has left with descriptors on their way to it.
_LINGER_S = 1.0


class ControlServer:
    """Serves ``listening`` on ``loop`` until ``stop`` or ``leave``; ``listening`` stays its caller's."""

    def __init__(
        self,
        loop: Loop,
        listening: socket.socket,
        store: ListenerStore,
        methods: Methods,
        counters: RequestCounters,
        users: Users,
    ) -> None:
        self._loop = loop
        self._listening = listening
        self._store = store
        self._methods = methods
        self._counters = counters
        self._users = users
        self._limits = users.limits
        self._peers: set[Peer] = set()
        # Peers that owe us something, or we them; and peers that may be dropped when there are too many. Both are in
        # the order of time, because a peer enters at the end.
        self._deadlines: dict[Peer, float] = {}
        self._idle: dict[Peer, None] = {}
        # Peers whose turn comes, and what for: 0 for whole requests that are not answered yet, READ or WRITE where
        # others of their user were first. In the order in which they came.
        self._queue: dict[Peer, int] = {}
        # Peers that are done with, but for descriptors that they may not have received.
        self._lingering: set[Peer] = set()
        self._stopping = False
        self._leave_at: float | None = None

    def stop(self) -> None:
        self._stopping = True
        self._loop.stop()

    def leave(self) -> None:
        """Take no new requests; ``run`` returns when those under way are answered, or will not be."""
        self._leave_at = time.monotonic() + self._limits.timeout_s
        self._loop.unwatch(self._listening)
        for peer in self._idle:
            self._watch(peer, None)

    def welcome(self, sock: socket.socket) -> None:
        """Serve a client that is connected already. Takes the socket."""
        began = time.monotonic()
        self._counters.count_connection()
        peer = Peer(sock, self._users)
        user = peer.user
        if refusal := self._no_room(user):
            self._turn_away(peer, refusal)
        else:
            self._peers.add(peer)
            self._users.enter(peer)
            self._loop.watch(sock, partial(self._ready, peer))
            self._deadlines[peer] = began + self._limits.timeout_s
            if not self._has_had_its_turn(user):
                # Its request is often there already, and this saves it a turn of the loop.
                self._serve(peer, READ)
        self._note_time(user, began)

    def run(self) -> list[socket.socket]:
        """The clients that are left after ``leave``, in the middle of nothing; the caller owns them."""
        self._listening.setblocking(False)
        self._loop.watch(self._listening, self._accept)
        try:
            self._loop.run(self._finish_turn)
            return [] if self._stopping else [self._dismiss(peer) for peer in list(self._idle)]
        finally:
            for peer in list(self._peers):
                self._close(peer)

    def _finish_turn(self) -> float | None:
        for peer, mask in list(self._queue.items()):
            if peer in self._queue and not self._has_had_its_turn(peer.user):
                began = time.monotonic()
                self._unqueue(peer)
                self._serve(peer, mask)
                self._note_time(peer.user, began)
        self._enforce_deadlines()
        if self._leave_at is not None and (
            len(self._idle) + len(self._lingering) == len(self._peers) or self._leave_at <= time.monotonic()
        ):
            self._loop.stop()
        if self._queue:
            return 0
        first = next(iter(self._deadlines.values()), None)
        due = [at for at in (first, self._leave_at) if at is not None]
        return min(due) if due else None

    def _dismiss(self, peer: Peer) -> socket.socket:
        self._peers.discard(peer)
        return peer.socket

    def _accept(self) -> None:
        end = time.monotonic() + _TURN_S
        for _ in range(_ACCEPTED_PER_TURN):
            if time.monotonic() > end:
                return
            try:
                sock, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _SHORTAGES:
                    continue  # this one client is gone again; accept(2) says to treat it like EAGAIN
                events.error("cannot-accept", error=error.strerror, clients=len(self._peers), retry_s=_SHORTAGE_PAUSE_S)
                self._loop.unwatch(self._listening)
                self._loop.call_later(_SHORTAGE_PAUSE_S, self._accept_again)
                return
            self.welcome(sock)

    def _accept_again(self) -> None:
        if self._leave_at is None:
            self._loop.watch(self._listening, self._accept)

    def _no_room(self, user: User) -> Refusal | None:
        """Which limit one more client would break, after others have made room."""
        limits = self._limits
        if not user.privileged and len(user.peers) >= limits.clients_per_uid and not self._make_room(user, user):
            text = f"uid {user.uid} has {limits.clients_per_uid} clients, its limit (--max-clients-per-uid)"
            return Refusal("clients_per_uid", text)
        if len(self._peers) >= limits.clients:
            greediest = self._users.greediest(privileged=user.privileged)
            if greediest is None or not self._make_room(user, greediest):
                return Refusal("clients", f"this binder serves {limits.clients} at once (--max-clients)")
        return None

    def _make_room(self, newcomer: User, user: User) -> bool:
        """Drop a client of ``user``, if there is one that may go."""
        victim = self._who_may_go(newcomer, user)
        if victim is None:
            return False
        events.complaint("evicted", victim.caller, clients=len(self._peers))
        self._counters.count_eviction()
        if not victim.owes_nothing:
            text = "too many clients: somebody with fewer needed this one's place; try again"
            self._say_goodbye(victim, messages.LIMIT_REACHED, text, {"limit": "clients"})
        self._close(victim)
        return True

    def _who_may_go(self, newcomer: User, user: User) -> Peer | None:
        """Who has been quiet longest, and is in the middle of nothing. For who has few clients, beside a user that has
        many, also one that is; for root's sake any, down to one that sits on descriptors: those stop to count."""
        for peer in self._idle:
            if peer.user is user and peer.is_quiet() and self._has_all(peer):
                return peer
        if 2 * len(newcomer.peers) < len(user.peers) and not user.privileged:
            for peer in user.peers:
                if not peer.awaits and self._has_all(peer):
                    return peer
        return next(iter(user.peers)) if newcomer.privileged and not user.privileged else None

    @staticmethod
    def _has_all(peer: Peer) -> bool:
        """Whether no descriptor is on its way to it. While one is, we need our end to know."""
        return peer.user.privileged or not peer.in_flight or peer.has_read_all()

    def _turn_away(self, peer: Peer, refusal: Refusal) -> None:
        events.complaint("turned-away", peer.caller, clients=len(self._peers), why=refusal.sentence)
        self._counters.count_refusal(refusal.limit)
        text = f"too many clients: {refusal.sentence}; try again"
        self._say_goodbye(peer, messages.LIMIT_REACHED, text, {"limit": refusal.limit})
        peer.socket.close()

    def _has_had_its_turn(self, user: User) -> bool:
        return user.turn == self._loop.turn and user.spent_s > _TURN_S

    def _note_time(self, user: User, began: float) -> None:
        spent_s = time.monotonic() - began
        if user.turn == self._loop.turn:
            user.spent_s += spent_s
        else:
            user.turn, user.spent_s = self._loop.turn, spent_s

    def _ready(self, peer: Peer) -> None:
        if peer not in self._peers or peer in self._queue:
            return
        if peer.user.queued or self._has_had_its_turn(peer.user):
            self._enqueue(peer, peer.watched or 0)
            return
        began = time.monotonic()
        self._serve(peer, peer.watched or 0)
        self._note_time(peer.user, began)

    def _serve(self, peer: Peer, mask: int) -> None:
        try:
            if mask == WRITE:
                peer.flush()
            if mask == READ:
                peer.receive()
            progress = self._answer_some(peer)
        except RemoteProtocolError as error:
            events.complaint("protocol-error", peer.caller, why=error)
            self._counters.count_refusal("protocol")
            self._say_goodbye(peer, messages.INVALID_REQUEST, f"Invalid request: {error}")
            self._drop(peer)
            return
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                # unix(7): what is sent and not yet received counts against our RLIMIT_NOFILE, whoever does not receive.
                events.complaint("cannot-hand-over", peer.caller, error=error.strerror)
                self._counters.count_refusal("in_flight")
                self._take_back(peer)
                self._say_goodbye(
                    peer,
                    messages.LIMIT_REACHED,
                    "clients that do not read hold too many descriptors of "
                    "this binder; raise LimitNOFILE= in its unit, or find them; try again",
                    {"limit": "in_flight"},
                )
                self._drop(peer)
                return
            events.debug("client-gone", pid=peer.caller.pid, why=error.strerror)
            self._drop(peer)
            return
        if excess := self._users.too_much_buffered(peer):
            victim, refusal = excess
            events.complaint("turned-away", victim.caller, why=refusal.sentence)
            self._counters.count_refusal(refusal.limit)
            text = f"Not now: {refusal.sentence}; try again later"
            self._say_goodbye(victim, messages.LIMIT_REACHED, text, {"limit": refusal.limit})
            self._drop(victim)
            if victim is peer:
                return
        if peer.at_end and not peer.backed_up and peer not in self._queue and not peer.resting:
            self._drop(peer)
            return
        self._keep_track(peer, progress)

    def _answer_some(self, peer: Peer) -> bool:
        """Answer what has arrived, one turn's worth. Whether there was anything to answer."""
        end = time.monotonic() + _CLIENT_TURN_S
        progress = False
        while True:
            # A client that does not take its answers gets no further ones: its requests wait in its own buffer.
            busy = peer.backed_up or peer.awaits or peer.resting
            message = None if busy else peer.decoder.next_message()
            if message is None:
                return progress
            progress = True
            if refusal := self._users.too_fast(peer.user):
                events.complaint("turned-away", peer.caller, why=refusal.sentence)
                self._rest(peer)
                self._counters.count_refusal(refusal.limit)
                peer.send(turn_down(message, *refusal))
                return True
            answer = self._methods.answer(message, peer.caller, partial(self._answer_later, peer, len(message)))
            if answer is None:
                peer.awaits = True
            else:
                self._give(peer, len(message), answer)
            if time.monotonic() > end:
                break
        self._enqueue(peer, 0)
        return True

    def _enqueue(self, peer: Peer, mask: int) -> None:
        if peer not in self._queue:
            self._queue[peer] = mask
            peer.user.queued += 1

    def _unqueue(self, peer: Peer) -> None:
        if self._queue.pop(peer, None) is not None:
            peer.user.queued -= 1

    def _give(self, peer: Peer, asked_bytes: int, answer: Answer) -> None:
        descriptors = sum(len(carried) for _, carried in answer.parts)
        if descriptors and (refusal := self._users.too_many_in_flight(peer.user, descriptors)):
            events.complaint("turned-away", peer.caller, why=refusal.sentence)
            self._counters.count_refusal(refusal.limit)
            self._store.take_back(answer.grants)
            text = f"Not now: {refusal.sentence}; try again later"
            answer = refuse(answer.id, messages.LIMIT_REACHED, text, {"limit": refusal.limit})
        self._users.charge(peer.user, asked_bytes, sum(len(text) for text, _ in answer.parts))
        peer.send(answer)

    def _rest(self, peer: Peer) -> None:
        """Hear no more of a client that asked too fast, for a moment."""

        def wake() -> None:
            if peer in self._peers and peer not in self._lingering:
                peer.resting = False
                self._enqueue(peer, 0)

        peer.resting = True
        self._loop.call_later(_REST_S, wake)

    def _answer_later(self, peer: Peer, asked_bytes: int, answer: Answer) -> None:
        """The answer to a request that could not be answered at once."""
        if peer not in self._peers or peer in self._lingering:
            self._store.take_back(answer.grants)
            return
        peer.awaits = False
        try:
            self._give(peer, asked_bytes, answer)
        except OSError:
            self._drop(peer)
        else:
            self._serve(peer, 0)

    def _keep_track(self, peer: Peer, progress: bool) -> None:
        if progress:
            self._deadlines.pop(peer, None)
        self._idle.pop(peer, None)
        if peer.awaits or peer.resting:
            # It waits for us, without a deadline; what it sends meanwhile waits in its own buffer.
            self._deadlines.pop(peer, None)
            self._watch(peer, None)
            return
        if peer.owes_nothing:
            self._idle[peer] = None
        else:
            self._deadlines.setdefault(peer, time.monotonic() + self._limits.timeout_s)
        if peer.owes_nothing and self._leave_at is not None:
            self._watch(peer, None)
        else:
            self._watch(peer, WRITE if peer.backed_up else READ)

    def _watch(self, peer: Peer, mask: int | None) -> None:
        if mask == peer.watched:
            return
        if mask is None:
            self._loop.unwatch(peer.socket)
        elif peer.watched is None:
            self._loop.watch(peer.socket, partial(self._ready, peer), mask)
        else:
            self._loop.watch_for(peer.socket, mask)
        peer.watched = mask

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        for _ in range(_DROPPED_PER_TURN):
            peer, deadline = next(iter(self._deadlines.items()), (None, now))
            if peer is None or deadline > now:
                break
            if peer.owes_nothing:
                events.debug("silent", pid=peer.caller.pid, uid=peer.caller.uid)
            else:
                what = "does not read its answer" if peer.backed_up else "sent half a request"
                events.complaint("timed-out", peer.caller, why=what)
                self._counters.count_refusal("timeout")
                text = f"Invalid request: incomplete after {self._limits.timeout_s:g} s"
                self._say_goodbye(peer, messages.INVALID_REQUEST, text)
            self._drop(peer)

    def _say_goodbye(self, peer: Peer, code: int, text: str, data: dict[str, object] | None = None) -> None:
        """A last answer to a client that is about to be dropped, if it takes it at once."""
        with contextlib.suppress(OSError):
            peer.send(refuse(None, code, text, data))

    def _take_back(self, peer: Peer) -> None:
        for grants in peer.forget_unsent():
            self._store.take_back(grants)

    def _drop(self, peer: Peer) -> None:
        """Be done with a peer. Descriptors on their way to it are our user's, and count, until it receives them or
        closes its end: so long it is a client."""
        if self._has_all(peer):
            self._close(peer)
            return
        self._forget(peer)
        self._users.forget_buffered(peer)
        peer.decoder = Decoder(0)
        with contextlib.suppress(OSError):
            peer.socket.shutdown(socket.SHUT_RDWR)
        if not self._lingering:
            self._loop.call_later(_LINGER_S, self._look_after)
        self._lingering.add(peer)

    def _look_after(self) -> None:
        for peer in [peer for peer in self._lingering if peer.has_read_all()]:
            self._close(peer)
        if self._lingering:
            self._loop.call_later(_LINGER_S, self._look_after)

    def _forget(self, peer: Peer) -> None:
        self._take_back(peer)
        self._watch(peer, None)
        self._deadlines.pop(peer, None)
        self._idle.pop(peer, None)
        self._unqueue(peer)

    def _close(self, peer: Peer) -> None:
        self._forget(peer)
        self._lingering.discard(peer)
        self._users.leave(peer)
        self._peers.discard(peer)
        peer.socket.close()
