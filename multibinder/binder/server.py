"""The control server: one thread, one selector, and nobody waits for anybody else's client."""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import time
from collections.abc import Callable

import msgspec

from multibinder.binder import events
from multibinder.binder.methods import Methods, refuse
from multibinder.binder.peer import Peer
from multibinder.binder.store import ListenerStore
from multibinder.wire import messages
from multibinder.wire.errors import RemoteProtocolError

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
    """Serves ``listening`` until ``stop``; closes its clients, not ``listening``, at the end.

    ``on_signal`` is called from the loop, never from a signal handler, with each signal number that arrives.
    """

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

    def stop(self) -> None:
        self._stopping = True

    def run(self, wakeup: socket.socket, on_signal: Callable[[int], None]) -> None:
        """The loop. ``wakeup`` is the reading end of signal.set_wakeup_fd(): a byte for each signal."""
        self._listening.setblocking(False)
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(wakeup, selectors.EVENT_READ)
        try:
            while not self._stopping:
                for key, mask in self._selector.select(self._time_left()):
                    if key.data in self._peers:
                        self._serve(key.data, mask)
                    elif key.fileobj is self._listening:
                        self._accept()
                    elif key.fileobj is wakeup:
                        for number in wakeup.recv(64):
                            on_signal(number)
                for peer in list(self._unread):
                    del self._unread[peer]
                    self._serve(peer, 0)
                self._enforce_deadlines()
        finally:
            for peer in list(self._peers):
                self._drop(peer)
            self._selector.close()

    def _time_left(self) -> float | None:
        """Seconds until something must be done without anybody asking; None: sleep until somebody asks."""
        if self._unread:
            return 0
        first = next(iter(self._deadlines.values()), None)
        due = [at for at in (first, self._accept_again_at) if at is not None]
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
            sock.setblocking(False)
            peer = Peer(sock, self._limits.request_bytes)
            if len(self._peers) >= self._limits.clients and not self._make_room():
                self._turn_away(peer)
                continue
            self._peers.add(peer)
            self._selector.register(sock, selectors.EVENT_READ, peer)
            self._deadlines[peer] = time.monotonic() + self._limits.timeout_s
            # Its request is often there already, and this saves it a turn of the loop.
            self._serve(peer, selectors.EVENT_READ)

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
            message = None if peer.backed_up else peer.decoder.next_message()
            if message is None:
                return turn > 0
            peer.send(self._methods.answer(message, peer.caller))
        self._unread[peer] = None
        return True

    def _keep_track(self, peer: Peer, progress: bool) -> None:
        if progress:
            self._deadlines.pop(peer, None)
        self._idle.pop(peer, None)
        if peer.owes_nothing:
            self._idle[peer] = None
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
            self._selector.register(self._listening, selectors.EVENT_READ)

    def _say_goodbye(self, peer: Peer, code: int, text: str) -> None:
        """A last answer to a client that is about to be dropped, if it takes it at once."""
        with contextlib.suppress(OSError):
            peer.send(refuse(None, code, text))

    def _take_back(self, peer: Peer) -> None:
        for grants in peer.forget_unsent():
            self._store.take_back(grants)

    def _drop(self, peer: Peer) -> None:
        self._take_back(peer)
        self._selector.unregister(peer.socket)
        peer.socket.close()
        self._peers.discard(peer)
        self._deadlines.pop(peer, None)
        self._idle.pop(peer, None)
        self._unread.pop(peer, None)
