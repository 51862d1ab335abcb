"""Spread a text that names several listeners: a list with commas, a range of ports, shards.

An element of a request is one listener with one descriptor, so the client does this.
"""

from __future__ import annotations

import os
import re
from typing import Literal

import msgspec

from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from multibinder.wire.errors import AddressError
from multibinder.wire.excerpt import excerpt, shown
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.options import MOST_SHARDS

#: The number of listeners on one address; ``"cpus"`` for as many as this process has CPUs to run on.
Shards = int | Literal["cpus"]

#: One text or call may name so many listeners. A binder holds 10,000 by default (``--max-listeners``).
MOST_LISTENERS = 10_000
_RANGE = re.compile(r"(.*:)([0-9]{1,9})-([0-9]{1,9})", re.DOTALL)


def addresses_in(text: str) -> list[Address]:
    """Return the addresses that a text names, in HAProxy's grammar: ``192.0.2.1:80,[::]:8000-8009``.

    Each part of a list has a prefix of its own. Raises AddressError.
    """
    if not isinstance(text, str):
        return [Address.parse(text)]  # raises AddressError
    found: list[Address] = []
    for part in text.split(","):
        found += _range(part)
        check_number(len(found), text)
    return found


def shard_count(shards: Shards) -> int:
    """Return the number of shards that is meant. Raises AddressError."""
    if shards == "cpus":
        return min(len(os.sched_getaffinity(0)), MOST_SHARDS)
    if not isinstance(shards, int) or isinstance(shards, bool):
        raise AddressError(f"shards {shown(shards)} is of type {type(shards).__name__}: give a number, or 'cpus'")
    if not 1 <= shards <= MOST_SHARDS:
        raise AddressError(f"shards {shown(shards)} is out of range: 1 to {MOST_SHARDS} listeners on an address")
    return shards


def in_shards(spec: ListenerSpec, shards: Shards | None) -> list[ListenerSpec]:
    """Return a specification for each shard of a listener; the listener alone without ``shards``.

    Raises AddressError.
    """
    if shards is None:
        return [spec]
    count = shard_count(shards)
    kind = kinds.of_address(spec.address)
    if not kind.can_shard:
        raise AddressError(
            f"{spec.address}: a listener of the kind {kind.name} has no shards: the kernel cannot share its clients "
            "safely. Leave shards out; several processes can accept on the one listener"
        )
    if count > 1 and spec.address == spec.address.any_port():
        raise AddressError(
            f"{spec.address}: shards are on one port, and the kernel would choose one for each: give the port"
        )
    # A name is for one listener.
    unnamed = spec if spec.options.name is None else msgspec.structs.replace(
        spec, options=msgspec.structs.replace(spec.options, name=None)
    )  # fmt: skip
    return [msgspec.structs.replace(unnamed if number else spec, shard=number, shards=count) for number in range(count)]


def check_number(number: int, text: str) -> None:
    """Raise AddressError if these are more listeners than one call may name."""
    if number > MOST_LISTENERS:
        raise AddressError(f"{excerpt(repr(text))} names more than {MOST_LISTENERS} listeners: give fewer at a time")


def _range(text: str) -> list[Address]:
    """Return the addresses of a range of ports; one address for any other text."""
    found = _RANGE.fullmatch(text)
    if found is None:
        return [Address.parse(text)]
    before, first, last = found[1], int(found[2]), int(found[3])
    lowest = Address.parse(f"{before}{first or 1}")
    if lowest == lowest.any_port():
        return [Address.parse(text)]  # a path, or a name, in which these are characters as others
    if not first:
        raise AddressError(f"{excerpt(repr(text))}: a range of ports begins with 1: for port 0 the kernel chooses one")
    if first > last:
        raise AddressError(
            f"{excerpt(repr(text))}: the range of ports ends before it begins: write {before}{last}-{first}"
        )
    Address.parse(f"{before}{last}")  # a port that there is not, before there are thousands of them
    check_number(last - first + 1, text)
    return [Address.parse(f"{before}{port}") for port in range(first, last + 1)]
