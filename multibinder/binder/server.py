"""The control server: one thread, one selector, and nobody waits for anybody else's client."""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import selectors
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import IO

import msgspec

from multibinder.binder import events
from multibinder.binder.methods import Answer, Methods, refuse
from multibinder.binder.peer import Peer
from multibinder.binder.store import ListenerStore
from multibinder.wire import messages
from multibinder.wire.errors import RemoteProtocolError

Watchable = socket.socket | IO[bytes] | int

#: Requests that one client may have answered before the others get their turn.
_REQUESTS_PER_TURN = 16
#: accept(2) fails with these while the system is short of something; the connection stays in the queue.
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_SHORTAGE_PAUSE_S = 1.0


class Limits(msgspec.Struct, frozen=True):
    """``request_bytes`` for one request; ``clients`` at once; ``timeout_s`` for a first request, for the rest of a
    half-sent one, and for a client to take its answer."""

    request_bytes: int = 512 * 1024
    clients: int = 1024
    timeout_s: float = 10.0


class ControlServer:
    """Serves ``listening`` until ``stop`` or ``leave``; ``listening`` stays its caller's."""

    def __init__(self, listening: socket.socket, store: ListenerStore, methods: Methods, limits: Limits) -> None:
        self._listening = listening
        self._store = store
        self._methods = methods
        self._limits = limits
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._peers: set[Peer] = set()
        # Peers that owe us something, or we them; and peers that may be dropped when there are too many. Both are in
        # the order of time, because a peer enters at the end.
        self._deadlines: dict[Peer, float] = {}
        self._idle: dict[Peer, None] = {}
        # Peers with whole requests that had their turn before all were answered.
        self._unread: dict[Peer, None] = {}
        self._accept_again_at: float | None = None
        self._leave_at: float | None = None
        self._alarms: list[tuple[float, int, Callable[[], None]]] = []
        self._alarm_numbers = itertools.count()

    def stop(self) -> None:
        self._stopping = True

    def leave(self) -> None:
        """Take no new requests; ``run`` returns when those under way are answered, or will not be."""
        self._leave_at = time.monotonic() + self._limits.timeout_s
        self.unwatch(self._listening)
        self._accept_again_at = None
        for peer in self._idle:
            self.unwatch(peer.socket)

    def watch(self, file: Watchable, react: Callable[[], None], mask: int = selectors.EVENT_READ) -> None:
        """Call ``react`` from the loop whenever ``file`` is ready."""
        self._selector.register(file, mask, react)

    def unwatch(self, file: Watchable) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(file)

    def call_later(self, seconds: float, react: Callable[[], None]) -> None:
        """Call ``react`` from the loop, once."""
        heapq.heappush(self._alarms, (time.monotonic() + seconds, next(self._alarm_numbers), react))

    def welcome(self, sock: socket.socket) -> None:
        """Serve a client that is connected already. Takes the socket."""
        sock.setblocking(False)
        peer = Peer(sock, self._limits.request_bytes)
        if len(self._peers) >= self._limits.clients and not self._make_room():
            self._turn_away(peer)
            return
        self._peers.add(peer)
        self._selector.register(sock, selectors.EVENT_READ, peer)
        self._deadlines[peer] = time.monotonic() + self._limits.timeout_s
        # Its request is often there already, and this saves it a turn of the loop.
        self._serve(peer, selectors.EVENT_READ)

    def run(self) -> list[socket.socket]:
        """The loop. The clients that are left after ``leave``, in the middle of nothing; the caller owns them."""
        self._listening.setblocking(False)
        self.watch(self._listening, self._accept)
        try:
            while not self._stopping and not self._may_leave():
                for key, mask in self._selector.select(self._time_left()):
                    if not isinstance(key.data, Peer):
                        key.data()
                    elif key.data in self._peers:
                        self._serve(key.data, mask)
                for peer in list(self._unread):
                    del self._unread[peer]
                    self._serve(peer, 0)
                self._enforce_deadlines()
                while self._alarms and self._alarms[0][0] <= time.monotonic():
                    heapq.heappop(self._alarms)[2]()
            return [] if self._stopping else [self._dismiss(peer) for peer in list(self._idle)]
        finally:
            for peer in list(self._peers):
                self._drop(peer)
            self._selector.close()

    def _may_leave(self) -> bool:
        if self._leave_at is None:
            return False
        return len(self._idle) == len(self._peers) or self._leave_at <= time.monotonic()

    def _dismiss(self, peer: Peer) -> socket.socket:
        self._peers.discard(peer)
        return peer.socket

    def _time_left(self) -> float | None:
        """Seconds until something must be done without anybody asking; None: sleep until somebody asks."""
        if self._unread:
            return 0
        first = next(iter(self._deadlines.values()), None)
        alarm = self._alarms[0][0] if self._alarms else None
        due = [at for at in (first, alarm, self._accept_again_at, self._leave_at) if at is not None]
        return max(0, min(due) - time.monotonic()) if due else None

    def _accept(self) -> None:
        for _ in range(64):
            try:
                sock, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _SHORTAGES:
                    continue  # this one client is gone again; accept(2) says to treat it like EAGAIN
                events.error("cannot-accept", error=error.strerror, clients=len(self._peers), retry_s=_SHORTAGE_PAUSE_S)
                self._selector.unregister(self._listening)
                self._accept_again_at = time.monotonic() + _SHORTAGE_PAUSE_S
                return
            self.welcome(sock)

    def _make_room(self) -> bool:
        """Drop the client that has been quiet longest, if there is one that is in the middle of nothing."""
        quietest = next(iter(self._idle), None)
        if quietest is None:
            return False
        events.warning("evicted", pid=quietest.caller.pid, uid=quietest.caller.uid, clients=len(self._peers))
        self._drop(quietest)
        return True

    def _turn_away(self, peer: Peer) -> None:
        events.warning("turned-away", pid=peer.caller.pid, uid=peer.caller.uid, clients=len(self._peers))
        text = f"too many clients: this binder serves {self._limits.clients} at once (--max-clients); try again"
        self._say_goodbye(peer, messages.LIMIT_REACHED, text)
        peer.socket.close()

    def _serve(self, peer: Peer, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                peer.flush()
            if mask & selectors.EVENT_READ and peer not in self._unread:
                peer.receive()
            progress = self._answer_some(peer)
        except RemoteProtocolError as error:
            events.warning("protocol-error", pid=peer.caller.pid, uid=peer.caller.uid, why=error)
            self._say_goodbye(peer, messages.INVALID_REQUEST, f"Invalid request: {error}")
            self._drop(peer)
            return
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                # unix(7): what is sent and not yet received counts against our RLIMIT_NOFILE, whoever does not receive.
                events.error("cannot-hand-over", pid=peer.caller.pid, uid=peer.caller.uid, error=error.strerror)
                self._take_back(peer)
                self._say_goodbye(
                    peer,
                    messages.LIMIT_REACHED,
                    "clients that do not read hold too many descriptors of "
                    "this binder; raise LimitNOFILE= in its unit, or find them; try again",
                )
                self._drop(peer)
                return
            events.debug("client-gone", pid=peer.caller.pid, why=error.strerror)
            self._drop(peer)
            return
        if peer.at_end and not peer.backed_up and peer not in self._unread:
            self._drop(peer)
            return
        self._keep_track(peer, progress)

    def _answer_some(self, peer: Peer) -> bool:
        """Answer what has arrived, one turn's worth. Whether there was anything to answer."""
        for turn in range(_REQUESTS_PER_TURN):
            # A client that does not take its answers gets no further ones: its requests wait in its own buffer.
            message = None if peer.backed_up or peer.awaits else peer.decoder.next_message()
            if message is None:
                return turn > 0
            answer = self._methods.answer(message, peer.caller, partial(self._answer_later, peer))
            if answer is None:
                peer.awaits = True
            else:
                peer.send(answer)
        self._unread[peer] = None
        return True

    def _answer_later(self, peer: Peer, answer: Answer) -> None:
        """The answer to a request that could not be answered at once."""
        if peer not in self._peers:
            self._store.take_back(answer.grants)
            return
        peer.awaits = False
        self._selector.register(peer.socket, selectors.EVENT_READ, peer)
        peer.watched = selectors.EVENT_READ
        try:
            peer.send(answer)
        except OSError:
            self._drop(peer)
        else:
            self._serve(peer, 0)

    def _keep_track(self, peer: Peer, progress: bool) -> None:
        if progress:
            self._deadlines.pop(peer, None)
        self._idle.pop(peer, None)
        if peer.awaits:
            # It waits for us, without a deadline; what it sends meanwhile waits in its own buffer.
            self._deadlines.pop(peer, None)
            self.unwatch(peer.socket)
            return
        if peer.owes_nothing:
            self._idle[peer] = None
            if self._leave_at is not None:
                self.unwatch(peer.socket)
                return
        else:
            self._deadlines.setdefault(peer, time.monotonic() + self._limits.timeout_s)
        wanted = selectors.EVENT_WRITE if peer.backed_up else selectors.EVENT_READ
        if wanted != peer.watched:
            self._selector.modify(peer.socket, wanted, peer)
            peer.watched = wanted

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        while self._deadlines:
            peer, deadline = next(iter(self._deadlines.items()))
            if deadline > now:
                break
            if peer.owes_nothing:
                events.debug("silent", pid=peer.caller.pid, uid=peer.caller.uid)
            else:
                what = "does not read its answer" if peer.backed_up else "sent half a request"
                events.warning("timed-out", pid=peer.caller.pid, uid=peer.caller.uid, why=what)
                text = f"Invalid request: incomplete after {self._limits.timeout_s:g} s"
                self._say_goodbye(peer, messages.INVALID_REQUEST, text)
            self._drop(peer)
        if self._accept_again_at is not None and self._accept_again_at <= now:
            self._accept_again_at = None
            self.watch(self._listening, self._accept)

    def _say_goodbye(self, peer: Peer, code: int, text: str) -> None:
        """A last answer to a client that is about to be dropped, if it takes it at once."""
        with contextlib.suppress(OSError):
            peer.send(refuse(None, code, text))

    def _take_back(self, peer: Peer) -> None:
        for grants in peer.forget_unsent():
            self._store.take_back(grants)

    def _drop(self, peer: Peer) -> None:
        self._take_back(peer)
        self.unwatch(peer.socket)
        peer.socket.close()
        self._peers.discard(peer)
        self._deadlines.pop(peer, None)
        self._idle.pop(peer, None)
        self._unread.pop(peer, None)
