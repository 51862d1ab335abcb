"""The guard's descriptor store: the other end of ``keeper.Keeper``, with systemd's protocol (sd_notify(3)).

To a barrier of a batch (BATCH=), the store answers with a text in the pipe before it closes it: ``KEPT N``, the number
of descriptors of this batch that it stored, and ``LOST NAME`` for each that it did not. A barrier without a batch is
closed, as systemd does it, but later if a descriptor before it was lost.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections import deque
from collections.abc import Callable, Iterable

from multibinder.binder import events
from multibinder.kernel.socket_options import close_without_lingering
from multibinder.wire.transport import Datagram

#: Descriptors of the guard that are not in the store: log, selector, signals, sockets, the pipes of a start, slack.
_RESERVED_DESCRIPTORS = 64
#: LISTEN_FDNAMES, which has all names, is one string of the environment (MAX_ARG_STRLEN, execve(2)).
_NAMES_BYTES = 128 * 1024 - 64
#: A name that the binder makes of a cookie has at most six characters in practice, and a colon.
_BYTES_PER_NAME = 7
#: An answer to a barrier must fit into an empty pipe (pipe(7)).
_ANSWER_BYTES = 32768
#: A binder of an older version counts a descriptor as kept when its barrier is closed, and gives up after 10 s.
_WITHHELD_S, _WITHHELD_MAX = 30.0, 16

#: Called with the fields and the text of a message that is not for the store.
PassOn = Callable[[dict[str, str], str], None]


class DescriptorStore:
    """Store descriptors by their names, as messages ask for. It owns all of them."""

    def __init__(self, descriptors: dict[str, int]) -> None:
        self._descriptors = descriptors
        self._names_bytes = sum(len(name.encode()) + 1 for name in descriptors)
        self._batch = ""
        self._stored = 0
        self._lost: list[str] = []
        self._withheld: deque[tuple[float, int]] = deque()
        self._said_full = False

    def __len__(self) -> int:
        return len(self._descriptors)

    def descriptors(self) -> list[tuple[str, int]]:
        """Return the names and descriptors, which stay the store's, in the order of their numbers."""
        return sorted(self._descriptors.items(), key=lambda named: named[1])

    def detach_all(self) -> list[tuple[str, int]]:
        """Give the descriptors, with their names, to the caller."""
        for _, barrier in self._withheld:
            os.close(barrier)
        self._withheld.clear()
        descriptors = self.descriptors()
        self._descriptors.clear()
        return descriptors

    def refusal_to_pass_on(self, others: int) -> str | None:
        """Return why a new program cannot take the store and ``others`` more descriptors, or None if it can."""
        if self._names_bytes > _NAMES_BYTES:
            return f"the names of {len(self)} descriptors are longer than {_NAMES_BYTES} bytes (LISTEN_FDNAMES)"
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit != resource.RLIM_INFINITY and len(self) + others + _RESERVED_DESCRIPTORS // 2 > limit:
            return f"the limit of open files (RLIMIT_NOFILE) is {limit}, and {len(self)} descriptors are kept"
        return None

    def process(self, datagram: Datagram, pass_on: PassOn) -> None:
        """Obey one message: store, remove, confirm. Descriptors that are not stored are closed."""
        if datagram.uid != os.geteuid():
            # Every user can send to the abstract address of an older guard.
            why = "a message to the guard from another user"
            events.limited(events.warning, "guard-refused", datagram.uid, uid=datagram.uid, why=why)
            _close_all(datagram.descriptors)
            return
        descriptors = list(datagram.descriptors)
        try:
            self._obey(datagram, descriptors, pass_on)
        finally:
            _close_all(descriptors)

    def _obey(self, datagram: Datagram, descriptors: list[int], pass_on: PassOn) -> None:
        """Obey one message. A descriptor that the store keeps is taken out of ``descriptors``."""
        text = datagram.text.decode(errors="replace")
        fields = dict(line.partition("=")[::2] for line in text.splitlines())
        name = fields.get("FDNAME", "")
        if "FDSTORE" in fields:
            self._begin_batch(fields.get("BATCH", ""))
            if not datagram.is_whole or len(descriptors) != 1 or not self._has_room(name):
                self._lost.append(name)
                self._forget(name)
            else:
                self._store(name, descriptors.pop())
                self._stored += 1
        elif "FDSTOREREMOVE" in fields:
            self._forget(name)
        elif "BARRIER" in fields:
            self._begin_batch(fields.get("BATCH", ""))
            self._confirm(descriptors)
        else:
            pass_on(fields, text)

    def _begin_batch(self, batch: str) -> None:
        if batch != self._batch:
            self._batch, self._stored = batch, 0
            self._lost.clear()

    def _has_room(self, name: str) -> bool:
        # It is asked each time: the limit may be lowered while the guard runs (prlimit(1)).
        known = name in self._descriptors
        has_room = known or (
            len(self) < room_for_descriptors() and self._names_bytes + len(name.encode()) < _NAMES_BYTES
        )
        if not has_room and not self._said_full:
            why = "no room (RLIMIT_NOFILE); what does not fit would not survive a crash of the binder"
            events.error("guard-store-full", kept=len(self), why=why)
        self._said_full = not has_room
        return has_room

    def _store(self, name: str, descriptor: int) -> None:
        self._forget(name)
        self._descriptors[name] = descriptor
        self._names_bytes += len(name.encode()) + 1

    def _forget(self, name: str) -> None:
        if name in self._descriptors:
            close_without_lingering(self._descriptors.pop(name))
            self._names_bytes -= len(name.encode()) + 1

    def _confirm(self, descriptors: list[int]) -> None:
        """Answer a barrier. The caller closes its descriptor, unless it is taken out of ``descriptors``."""
        now = time.monotonic()
        while self._withheld and (self._withheld[0][0] < now or len(self._withheld) >= _WITHHELD_MAX):
            os.close(self._withheld.popleft()[1])
        if self._batch:
            answer = f"KEPT {self._stored}\n" + "".join(f"LOST {name}\n" for name in self._lost)
            for descriptor in descriptors:
                # A reader that is gone, or a pipe that is full, gets no answer, which confirms nothing.
                with contextlib.suppress(OSError):
                    os.set_blocking(descriptor, False)
                    os.write(descriptor, answer.encode()[:_ANSWER_BYTES])
        else:
            if self._lost:
                self._withheld.extend((now + _WITHHELD_S, descriptor) for descriptor in descriptors)
                descriptors.clear()
            self._lost.clear()


def _close_all(descriptors: Iterable[int]) -> None:
    # A program of our own user may send sockets that would linger, too.
    for descriptor in descriptors:
        close_without_lingering(descriptor)


def raise_limit() -> None:
    """Raise the limit of open files (RLIMIT_NOFILE) to the hard one: each kept socket takes a descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def room_for_descriptors() -> int:
    """Return the number of descriptors that a store in this process can hold, under the limits of now."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    by_names = _NAMES_BYTES // _BYTES_PER_NAME
    return by_names if limit == resource.RLIM_INFINITY else max(0, min(by_names, limit - _RESERVED_DESCRIPTORS))


def promised_room(asked: str) -> int:
    """Return the number of descriptors that a binder may store ($FDSTORE): what there is room for, or less if asked."""
    room = room_for_descriptors()
    return min(int(asked), room) if asked.isascii() and asked.isdigit() else room
