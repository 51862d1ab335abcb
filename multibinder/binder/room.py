"""The room that a request has: how many listeners and claims it may still add."""

from __future__ import annotations

import msgspec

from multibinder.wire.errors import RequestError
from multibinder.wire.messages import LIMIT_REACHED, ListenerSpec


class Room(msgspec.Struct):
    """Count down how many listeners and claims a request of ``uid`` may still add.

    ``limit`` and ``limit_per_uid`` are the limits that a refusal names.
    """

    uid: int
    limit: int
    limit_per_uid: int
    listeners: int
    claims: int

    def take_claim(self, spec: ListenerSpec) -> None:
        """Count one more claim of this uid. Raises RequestError if there is no room for it."""
        if self.claims <= 0:
            raise RequestError(
                f"Could not bind: {spec.address}: uid {self.uid} has its limit of {self.limit_per_uid} listeners "
                "(multibinder serve --max-listeners-per-uid)",
                LIMIT_REACHED,
                {"limit": "listeners_per_uid"},
            )
        self.claims -= 1

    def take_listener(self, spec: ListenerSpec) -> None:
        """Count one more listener. Raises RequestError if there is no room for it."""
        if self.listeners <= 0:
            raise RequestError(
                f"Could not bind: {spec.address}: this binder holds its limit of {self.limit} listeners "
                "(multibinder serve --max-listeners)",
                LIMIT_REACHED,
                {"limit": "listeners"},
            )
        self.listeners -= 1
