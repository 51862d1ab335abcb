"""The keeper of sockets while the binder is dead: systemd's descriptor store, or the guard, by the same protocol.

sd_notify(3): FDSTORE=1 stores a descriptor under FDNAME=, FDSTOREREMOVE=1 removes it. BARRIER=1 carries a descriptor
that the keeper closes when it has processed all earlier messages. $FDSTORE is the number of descriptors that the keeper
takes (set by systemd 254, the guard, our unit).
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from multibinder.binder import events
from multibinder.binder.loop import WRITE, Loop
from multibinder.wire import transport

#: The keeper must confirm within this time. It takes milliseconds, but systemd may be in the middle of a reload.
CONFIRM_S = 10.0

#: Set by the guard in the environment of the binder that it starts.
GUARDED = "MULTIBINDER_GUARDED"

#: Called with True when the keeper has all descriptors that were sent, else with False.
OnConfirmed = Callable[[bool], None]


class Keeper:
    """The binder's side of a descriptor store. It never blocks; ``close`` it before the loop is closed.

    ``limit`` is the number of descriptors that the keeper takes; ``who`` is ``systemd`` or ``guard``. ``kept_names``
    are the names of descriptors that it has already, because they came from it.
    """

    def __init__(self, loop: Loop, address: str, limit: int, who: str, kept_names: Iterable[str] = ()) -> None:
        self._loop = loop
        self.limit = limit
        self.who = who
        self._names = set(kept_names)
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._silent = False
        self._watching = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.connect(f"\0{address[1:]}" if address.startswith("@") else address)

    @property
    def kept(self) -> int:
        """Return the number of descriptors that the keeper has."""
        return len(self._names)

    def keep(self, descriptors: Sequence[tuple[str, int]], confirmed: OnConfirmed) -> None:
        """Store (name, descriptor) each, and call ``confirmed`` from the loop. The descriptors stay the caller's."""
        new = [pair for pair in descriptors if pair[0] not in self._names]
        fits = max(0, self.limit - len(self._names))
        if len(new) > fits:
            events.error(
                "store-full",
                limit=self.limit,
                lost=len(new) - fits,
                why="they would not survive a crash of the binder; raise FileDescriptorStoreMax=",
            )
        for name, descriptor in new[:fits]:
            self._names.add(name)
            # Without FDPOLL=0, systemd drops a socket that a holder shuts down.
            message = f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0".encode()
            self._unsent.append((message, [os.dup(descriptor)]))
        complete = len(new) <= fits
        self._barrier(lambda arrived: confirmed(arrived and complete))

    def forget(self, names: Sequence[str]) -> None:
        """Remove descriptors from the keeper, by their names; names that it does not have are skipped."""
        for name in names:
            if name in self._names:
                self._names.discard(name)
                self._unsent.append((f"FDSTOREREMOVE=1\nFDNAME={name}".encode(), []))
        self._flush()

    def close(self) -> None:
        """Close the connection. Messages that were not sent are lost."""
        self._socket.close()
        for _, descriptors in self._unsent:
            for descriptor in descriptors:
                os.close(descriptor)

    def _barrier(self, confirmed: OnConfirmed) -> None:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        self._unsent.append((b"BARRIER=1", [writing]))
        called = False

        def closed() -> None:
            nonlocal called
            self._loop.unwatch(reading)
            os.close(reading)
            self._silent = False
            if not called:
                called = True
                confirmed(True)

        def overdue() -> None:
            nonlocal called
            if not called:
                called = self._silent = True
                events.error("store-silent", seconds=CONFIRM_S, why="the keeper does not confirm what it was sent")
                confirmed(False)

        self._loop.watch(reading, closed)
        # After one timeout, no client waits for the keeper until it has confirmed something again.
        self._loop.call_later(0 if self._silent else CONFIRM_S, overdue)
        self._flush()

    def _flush(self) -> None:
        while self._unsent:
            message, descriptors = self._unsent[0]
            try:
                transport.send(self._socket, message, descriptors)
            except BlockingIOError:
                if not self._watching:
                    self._watching = True
                    self._loop.watch(self._socket, self._flush, WRITE)
                return
            except OSError as error:
                events.error("store-unreachable", why=error.strerror)
            self._unsent.popleft()
            for descriptor in descriptors:
                os.close(descriptor)
        if self._watching:
            self._watching = False
            self._loop.unwatch(self._socket)


def keeper_for(environment: Mapping[str, str], loop: Loop, kept_names: Iterable[str] = ()) -> Keeper | None:
    """Return the keeper that $NOTIFY_SOCKET and $FDSTORE name; None without a keeper, or if it cannot be reached."""
    address, limit = environment.get("NOTIFY_SOCKET", ""), environment.get("FDSTORE", "")
    if not address or not limit.isdigit() or int(limit) == 0:
        return None
    try:
        return Keeper(loop, address, int(limit), "guard" if GUARDED in environment else "systemd", kept_names)
    except OSError as error:
        events.error("store-unreachable", socket=address, why=error.strerror)
        return None
