"""Sentences for refused binds: the kernel's error, the process that has the address, and a remedy."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from multibinder.binder.listener import Listener
from multibinder.binder.owner import is_privileged
from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from multibinder.wire.errors import BindError, errname
from multibinder.wire.messages import COULD_NOT_BIND, ListenerSpec

#: Searches of /proc for users who are not privileged are at least this far apart.
_SEARCH_EVERY_S = 10.0

#: Names the processes that have an address that the kernel refused. Empty if none can be named.
WhoListens = Callable[[Address], str]


class BindRefusals:
    """Explain the errors of bind(2) and listen(2).

    For an address in use, ``who_listens`` searches /proc. That takes a tenth of a second on a large host, and every
    client waits meanwhile, so searches for users who are not privileged are throttled.
    """

    def __init__(self, who_listens: WhoListens) -> None:
        self._who_listens = who_listens
        self._search_again_at = 0.0

    def of(self, address: Address, error: OSError, uid: int) -> BindError:
        """Return the refusal for a client of ``uid``; for the binder's own repairs, ``uid`` is its own."""
        number = error.errno or 0
        return BindError(
            f"Could not bind: {address}: {self._explain(address, number, uid)}",
            COULD_NOT_BIND,
            {"errno": number, "errname": errname(number), "address": str(address)},
        )

    def _explain(self, address: Address, number: int, uid: int) -> str:
        reason = os.strerror(number).lower()
        holders = ""
        if number == errno.EADDRINUSE and self._may_search(uid):
            holders = self._who_listens(address)
        if (remedy := kinds.of_address(address).explain_refusal(address, number, holders)) is not None:
            return reason + remedy
        if number in (errno.EMFILE, errno.ENFILE):
            return f"{reason}: raise LimitNOFILE= in the binder's unit, or lower --max-listeners"
        return reason

    def _may_search(self, uid: int) -> bool:
        now = time.monotonic()
        if not is_privileged(uid) and now < self._search_again_at:
            return False
        self._search_again_at = now + _SEARCH_EVERY_S
        return True


def require_same(listener: Listener, spec: ListenerSpec) -> None:
    """Raise BindError if ``spec`` asks to change what cannot change after bind(2). The error names both values."""
    has, wants = listener.options, spec.options
    for what, old, new in (
        ("address", listener.address, spec.address if not spec.address.matches(listener.address) else None),
        ("v6only", has.v6only, wants.v6only),
        ("name", has.name, wants.name),
    ):
        if new is None or new == old or old is None:
            continue
        raise BindError(
            f"Could not bind: {spec}: the listener exists with {what} {old}, "
            f"and {new} was asked for; it cannot change while the socket lives. Release it first, or ask for the same",
            COULD_NOT_BIND,
            {"errno": errno.EINVAL, "errname": "EINVAL", "address": str(spec.address)},
        )
