"""What this process does with one listener: how its ``accept()`` waits, and whether it may accept."""

from __future__ import annotations

import contextlib
import errno
import select
import time

from multibinder.kernel.wakeup import Wakeups
from multibinder.wire.addresses import Address

#: Another holder's shutdown(2) is repaired by the binder within milliseconds. After so many seconds, the listener was
#: released by a binder that says no more about it.
REPAIR_PATIENCE_S = 1.0
#: Two looks that are further apart may have seen two different shutdowns.
_SAME_SHUTDOWN_S = 0.5
#: poll(2) takes milliseconds as an int.
_LONGEST_WAIT_S = 1_000_000.0
#: The length of one wait of a process that cannot have one more descriptor to be woken by.
_WITHOUT_WAKEUP_S = 0.1


class LocalAcceptors:
    """The threads of this process that accept on one object, and what they have been told.

    ``timeout`` is what socket.settimeout() takes. ``paused``, ``shut`` and ``closed`` are set once and never taken
    back; ``barred`` is true if one of them is.
    """

    def __init__(self, address: Address | None, timeout: float | None = None) -> None:
        self.address = address
        self.timeout = timeout
        #: The shard and the network namespace that were asked for.
        self.place = (0, "")
        self.barred = self.paused = self.shut = self.closed = False
        self._wakeups = Wakeups()
        self._shutdown_since = self._shutdown_seen = float("-inf")

    def of_another_object(self) -> LocalAcceptors:
        """Return the same for another object on the same listener. It has no waiting threads."""
        other = LocalAcceptors(self.address, self.timeout)
        other.place = self.place
        other.barred, other.paused, other.shut = self.paused or self.shut, self.paused, self.shut
        return other

    def pause(self) -> None:
        # Nothing to wake for: a thread that waits looks here before it accepts.
        self.barred = self.paused = True

    def shut_down(self) -> None:
        self.barred = self.shut = True
        self._wakeups.wake()

    def close(self) -> None:
        self.barred = self.closed = True
        self._wakeups.wake()

    @property
    def refusal(self) -> OSError | None:
        """The error for a thread that must not accept any more; None for one that may, or that is paused."""
        if self.closed:
            return OSError(errno.EBADF, f"{self.name} was closed in this process")
        if self.shut:
            return OSError(errno.EINVAL, f"{self.name} was shut down in this process; bind again to accept")
        return None

    @property
    def name(self) -> str:
        return "the listener" if self.address is None else f"the listener on {self.address}"

    def wait(
        self,
        listener: int | None,
        until: float | None,
        *,
        paused: bool = False,
        # A released listener may become parked before this thread looks, and is writable then, not readable.
        events: int = select.POLLIN | select.POLLOUT,
    ) -> None:
        """Wait until the descriptor of the listener has one of ``events`` (poll(2)), until another thread changes what
        is told here, or until a time of time.monotonic(). May return earlier.

        ``paused`` is what the caller believes of this object.
        """
        patience_s = _LONGEST_WAIT_S if until is None else min(until - time.monotonic(), _LONGEST_WAIT_S)
        waiting = select.poll()
        wakeup = None
        with contextlib.suppress(OSError):
            wakeup = self._wakeups.current()
            waiting.register(wakeup, select.POLLIN)
        if wakeup is None:
            patience_s = min(patience_s, _WITHOUT_WAKEUP_S)
        if listener is not None and listener >= 0:
            try:
                # What the epoll instance has for a listener makes it readable.
                watching = listener if wakeup is None else wakeup.watching(listener, events)
                waiting.register(watching, events | select.POLLIN)
            except OSError:  # a shortage of descriptors or memory
                waiting.register(listener, events)
        # After the wake-up was made: what is told before is seen here, and what is told later wakes it.
        if not (self.shut or self.closed or self.paused is not paused):
            waiting.poll(max(patience_s, 0) * 1000)

    def has_stayed_shut(self) -> bool:
        """Note that the listener does not listen now. Return whether that has lasted too long for a repair."""
        now = time.monotonic()
        if now - self._shutdown_seen > _SAME_SHUTDOWN_S:
            self._shutdown_since = now
        self._shutdown_seen = now
        return now - self._shutdown_since >= REPAIR_PATIENCE_S
