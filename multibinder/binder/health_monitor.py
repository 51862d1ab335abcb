"""Looking after listeners: who has them, whether anybody accepts there, what was dropped; and closing orphans."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from multibinder.binder import events
from multibinder.binder.listener import Listener
from multibinder.binder.loop import Loop
from multibinder.binder.store import ListenerStore
from multibinder.kernel.accept_queue import accept_queue
from multibinder.kernel.socket_options import cookie_of, drops_of, inode_of
from multibinder.observe.holders import Holder, holders_of
from multibinder.wire.status import HolderStatus, ListenerHealth, OwnerStatus

#: From one look to the next.
LOOK_EVERY_S = 15.0
#: A listener is an orphan when no look has found a holder for so long: a server that restarts has none for a moment.
#: Nor is it one for so long after a handoff: what is on its way is nobody's yet. With the above: within half a minute.
GRACE_S = 10.0
#: A queue that is not empty is watched this closely: if nobody accepts in all of this time, it does not move.
_SAMPLE_EVERY_S, _SAMPLES = 0.05, 20
#: A repair is shown for so long.
_REPAIRED_S = 3600.0
#: Of an answer of the child's.
_CHUNK = 1 << 20


class OrphanTtl(msgspec.Struct, frozen=True):
    """How long an orphan may live, in seconds; None for ever. ``of`` is an address, an owner's label (a pattern as in
    fnmatch), or empty for all others."""

    of: str
    seconds: float | None


class _Seen(msgspec.Struct):
    """What is known of one listener. ``dropped`` at ``dropped_at`` is what drops per second are reckoned from.
    ``alone_since``: the first look that found no holder, and none has since; ``orphan``: that is long enough ago.

    ``since`` are times of time.time(), to be told; ``at`` those of time.monotonic(), to be reckoned with.
    """

    dropped: int
    dropped_at: float
    drops_per_s: float = 0.0
    holders: Sequence[Holder] | None = None
    alone_since: float | None = None
    alone_at: float = 0.0
    orphan: bool = False
    stalled_since: float | None = None


class _Held(msgspec.Struct, frozen=True):
    """What the child found. ``hidden``: any process that it may not look into might be a holder too."""

    by_inode: Mapping[int, Sequence[Holder]]
    hidden: bool


class Watch:
    """Looks every 15 seconds, and whenever ``look`` is called. ``keepers`` are processes that have copies for us."""

    def __init__(
        self, loop: Loop, store: ListenerStore, orphan_ttl: Sequence[OrphanTtl], keepers: Collection[int]
    ) -> None:
        self._loop = loop
        self._store = store
        self._ttl = orphan_ttl
        self._keepers = frozenset(keepers)
        self._seen: dict[Listener, _Seen] = {}
        self._waiting: list[Callable[[], None]] = []
        self._child = 0
        self._reading = -1
        self._began = 0.0
        self._said = b""
        self._looks_again = False
        self.looked_at: float | None = None  # time.time()

    def look_now_and_then(self) -> None:
        self._loop.call_later(LOOK_EVERY_S, self.look_now_and_then)
        self.look(lambda: None)

    def look(self, seen: Callable[[], None]) -> None:
        """Look at everything now; ``seen`` is called from the loop when that is done.

        A pass over /proc takes some milliseconds, on a large host some hundreds, so a child of ours does it: nobody
        else's request waits for it.
        """
        if not len(self._store):
            self._seen.clear()
            self._loop.call_later(0, seen)
            return
        self._waiting.append(seen)
        if self._child:
            return
        inodes = [inode_of(listener.socket) for listener in self._store.listeners()]
        self._began = time.monotonic()
        reading, writing = os.pipe2(os.O_CLOEXEC)
        except_ = {os.getpid(), *self._keepers}
        try:
            self._child = os.fork()
        except OSError as error:
            os.close(reading)
            os.close(writing)
            events.warning("cannot-look", why=error.strerror)
            self._loop.call_later(0, lambda: self._finish(None))
            return
        if not self._child:
            _look_and_die(inodes, except_, writing)
        os.close(writing)
        self._reading = reading
        self._said = b""
        self._loop.watch(reading, self._listen)

    def stop(self) -> None:
        """Leave no child behind, whatever it is about. Nobody is told."""
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            self._reap()

    def health(self, listeners: Sequence[Listener]) -> list[ListenerHealth]:
        """As of the last look; queues and drops as of now."""
        now = time.time()
        return [self._health(listener, self._seen.get(listener) or _Seen(0, 0.0), now) for listener in listeners]

    def _listen(self) -> None:
        chunk = os.read(self._reading, _CHUNK)
        self._said += chunk
        if chunk:
            return
        self._loop.unwatch(self._reading)
        self._reap()
        held = None
        try:
            held = msgspec.json.decode(self._said, type=_Held)
        except msgspec.DecodeError:
            events.warning("cannot-look", why="whoever was to look into /proc ended too early, or took too long")
        self._said = b""
        self._finish(held)

    def _reap(self) -> None:
        os.close(self._reading)
        # Whoever started us may have us ignore SIGCHLD: then the kernel has reaped it.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._child, 0)
        self._child = 0

    def _finish(self, held: _Held | None) -> None:
        if held is not None:
            self.looked_at = time.time()
        listeners = self._store.listeners()
        for gone in self._seen.keys() - set(listeners):
            del self._seen[gone]
        suspects = []
        for listener in listeners:
            seen = self._look_at_drops(listener)
            if held is not None:
                self._note_holders(listener, seen, held)
            length = accept_queue(listener.socket).length
            if not length:
                seen.stalled_since = None
            else:
                suspects.append((listener, length))
        if suspects:
            self._loop.call_later(_SAMPLE_EVERY_S, lambda: self._sample(suspects, _SAMPLES))
        if held is not None:
            # Only now: nobody has it, as this very look has found.
            for listener in listeners:
                self._close_orphan(listener)
        waiting, self._waiting = self._waiting, []
        for tell in waiting:
            tell()

    def _look_at_drops(self, listener: Listener) -> _Seen:
        now, dropped = time.monotonic(), drops_of(listener.socket)
        seen = self._seen.get(listener)
        if seen is None:
            # What it dropped before we saw it, in another life of ours, it did not drop just now.
            seen = self._seen[listener] = _Seen(dropped, now)
        elif now - seen.dropped_at >= 1:
            seen.drops_per_s = (dropped - seen.dropped) % 2**32 / (now - seen.dropped_at)
            seen.dropped, seen.dropped_at = dropped, now
        return seen

    def _note_holders(self, listener: Listener, seen: _Seen, held: _Held) -> None:
        found = held.by_inode.get(inode_of(listener.socket), ())
        hidden = held.hidden or listener.held_outside_pid_namespace
        seen.holders = None if hidden and not found else found
        if found or hidden or listener.last_handoff_at > self._began - GRACE_S:
            if seen.orphan:
                why = found[0] if found else "some processes cannot be seen" if hidden else "it was asked for"
                events.info("orphan-no-more", address=listener.address, why=why)
            seen.alone_since, seen.orphan = None, False
        elif seen.alone_since is None:
            seen.alone_since, seen.alone_at = time.time(), self._began
            self._look_again(seen.alone_at + GRACE_S)
        elif not seen.orphan and self._began < seen.alone_at + GRACE_S:
            self._look_again(seen.alone_at + GRACE_S)
        elif not seen.orphan:
            seen.orphan = True
            events.warning(
                "orphan",
                address=listener.address,
                owners=",".join(label or "-" for label in listener.labels),
                waiting=accept_queue(listener.socket).length,
                why="no process has it open: its clients wait for nobody",
            )

    def _look_again(self, at: float) -> None:
        """When one that has no holder now will be an orphan, unless it has found one by then."""
        if self._looks_again:
            return

        def look() -> None:
            self._looks_again = False
            self.look(lambda: None)

        self._looks_again = True
        self._loop.call_later(max(0.0, at - time.monotonic()), look)

    def _sample(self, suspects: Sequence[tuple[Listener, int]], left: int) -> None:
        """A queue that somebody accepts from is shorter now and then, however many come."""
        still = []
        for listener, longest in suspects:
            seen = self._seen.get(listener)
            if seen is None or listener.socket.fileno() < 0:
                continue
            length = accept_queue(listener.socket).length
            if length < longest:
                seen.stalled_since = None
            else:
                still.append((listener, length))
        if left and still:
            self._loop.call_later(_SAMPLE_EVERY_S, lambda: self._sample(still, left - 1))
            return
        now = time.time()
        for listener, length in still:
            seen = self._seen[listener]
            if seen.stalled_since is None and not seen.orphan:
                seen.stalled_since = now - _SAMPLE_EVERY_S * _SAMPLES
                events.warning("stalled", address=listener.address, waiting=length, why="nobody accepts from its queue")

    def _close_orphan(self, listener: Listener) -> None:
        seen, ttl = self._seen[listener], self.ttl_of(listener)
        if not seen.orphan or ttl is None or self._began - seen.alone_at < ttl:
            return
        waiting = accept_queue(listener.socket).length
        del self._seen[listener]
        self._store.close_orphan(listener)
        events.warning(
            "orphan-closed", address=listener.address, after_s=int(self._began - seen.alone_at), reset=waiting
        )

    def ttl_of(self, listener: Listener) -> float | None:
        """The most particular one: of its address, of an owner, of all."""
        address, labels = str(listener.address), listener.labels
        found = [
            (rank, ttl.seconds)
            for ttl in self._ttl
            for rank in [
                0 if ttl.of == address else 1 if any(label and fnmatch.fnmatchcase(label, ttl.of) for label in labels)
                else 2 if not ttl.of else 3
            ]
            if rank < 3
        ]  # fmt: skip
        return min(found, key=lambda each: each[0])[1] if found else None

    def _health(self, listener: Listener, seen: _Seen, now: float) -> ListenerHealth:
        queue = accept_queue(listener.socket)
        holders = seen.holders
        repaired = bool(listener.repaired_at) and now - listener.repaired_at < _REPAIRED_S
        return ListenerHealth(
            address=str(listener.address),
            name=listener.options.name,
            owners=[OwnerStatus(owner.label, owner.uid) for owner in listener.claims],
            state="orphan" if seen.orphan
            else "stalled" if seen.stalled_since is not None and queue.length
            else "repaired" if repaired else "serving",
            queue=queue.length,
            limit=queue.limit,
            backlog_requested=listener.options.backlog,
            v6only=listener.options.v6only,
            drops=drops_of(listener.socket),
            drops_per_s=seen.drops_per_s,
            handoffs=listener.handoffs,
            created=listener.created,
            cookie=cookie_of(listener.socket),
            inode=inode_of(listener.socket),
            holders=None if holders is None else [HolderStatus(each.pid, each.name, each.role) for each in holders],
            orphan_since=seen.alone_since if seen.orphan else None,
            orphan_ttl_s=self.ttl_of(listener),
            stalled_since=seen.stalled_since,
            repairs=listener.repairs,
            repaired_at=listener.repaired_at or None,
            kept=listener.kept,
        )  # fmt: skip


def _look_and_die(inodes: Sequence[int], except_: Collection[int], writing: int) -> None:
    """In the child: it reads /proc, writes to the pipe, and is gone."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        # If we are killed meanwhile, our copies must not keep ports open, nor the lock that the next binder needs.
        os.closerange(3, writing)
        os.closerange(max(3, writing + 1), 1 + max(map(int, os.listdir("/proc/self/fd"))))
        signal.alarm(int(LOOK_EVERY_S) or 1)
        found = holders_of(inodes, {*except_, os.getpid()})
        text = memoryview(msgspec.json.encode(_Held(found.by_inode, found.hidden)))
        while text:
            text = text[os.write(writing, text) :]
    finally:
        os._exit(0)
