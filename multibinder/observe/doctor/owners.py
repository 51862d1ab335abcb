"""Report listeners that several owners have bound."""

from __future__ import annotations

from collections.abc import Iterator

from multibinder.observe.doctor.facts import Facts
from multibinder.observe.doctor.finding import Finding

#: The owner of a socket unit's listener until a program binds it. It accepts nothing.
_INHERITED = "inherited"


def several_owners(facts: Facts) -> Iterator[Finding]:
    """Report each listener with two or more owners: each connection goes to one of them."""
    for held in facts.binder.listeners if facts.binder else ():
        owners = [owner for owner in held.owners if owner.partition(":")[0] != _INHERITED]
        if len(owners) < 2:
            continue
        names = [owner or "a client without a label" for owner in owners]
        yield Finding(
            "owners",
            "warning",
            f"{len(owners)} owners have bound one address: {', '.join(names)}",
            held.address,
            "Each connection goes to one or the other. That is right while one hands over to the other, at no other "
            "time. The claim of an owner that does not run any more keeps the port open when the other one stops",
            f"stop one of them; or, if it is gone: multibinder release --owner '{owners[0]}' '{held.address}'",
        )
