"""Counters of what the control socket served and refused since this process started."""

from __future__ import annotations

from bisect import bisect_left

from multibinder.wire import messages
from multibinder.wire.errors import BindError, NotAllowed, RequestError
from multibinder.wire.status import REQUEST_BOUNDS_S, Counters


class RequestCounters:
    """Count requests, refusals, handoffs and connections. ``totals`` is the structure that ``status`` shows."""

    def __init__(self) -> None:
        self.totals = Counters(request_buckets=[0] * (len(REQUEST_BOUNDS_S) + 1))

    def count_request(self, method: str) -> None:
        """Count one request. ``method`` is ``other`` for a method that the binder does not have."""
        _increment(self.totals.requests, method)

    def count_refusal(self, reason: str) -> None:
        """Count one refusal. ``reason`` is one that ``Counters`` names, or the name of the limit that was reached."""
        _increment(self.totals.refusals, reason)

    def count_error(self, error: RequestError) -> None:
        """Count the refusal that ``error`` tells the client."""
        match error.code:
            case messages.NOT_ALLOWED:
                self.count_refusal("policy" if isinstance(error, NotAllowed) else "owner")
            case messages.LIMIT_REACHED:
                self.count_refusal(str(error.data.get("limit")))
            case _:
                self.count_refusal("bind" if isinstance(error, BindError) else "other")

    def count_handoffs(self, descriptors: int) -> None:
        self.totals.handoffs += descriptors

    def count_connection(self) -> None:
        self.totals.connections += 1

    def count_eviction(self) -> None:
        self.totals.evictions += 1

    def observe_request(self, seconds: float) -> None:
        """Add the time that one request took to the histogram."""
        self.totals.request_buckets[bisect_left(REQUEST_BOUNDS_S, seconds)] += 1
        self.totals.request_seconds += seconds


def _increment(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1
