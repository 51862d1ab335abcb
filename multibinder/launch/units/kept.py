"""The listeners of a systemd unit that opens them itself: the binder keeps them for the unit's next start.

The claims have a label of the unit, ``unit@nginx.service``. They come by adoption, after the server has opened its
listeners; the next start finds all of them by the label. So no list of addresses is kept beside the server's own
configuration.
"""

from __future__ import annotations

import msgspec

from multibinder.launch.exec.request import IN_LABEL, LABEL_CHARACTERS
from multibinder.wire.addresses import Address
from multibinder.wire.client import Client
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.options import OPTION_NAMES, Options
from multibinder.wire.status import ListenerStatus, OwnerStatus

#: Options that the kernel shows doubled (SO_RCVBUF, socket(7)).
_DOUBLED = ("rcvbuf", "sndbuf")


def owner_of(unit: str) -> str:
    """Return the owner label of a unit's listeners."""
    return f"unit@{''.join(each if each in IN_LABEL else '_' for each in unit)}"[:LABEL_CHARACTERS]


def held(binder: Client, unit: str) -> list[tuple[ListenerStatus, OwnerStatus]]:
    """Return the listeners with a claim of the unit, each with this claim. A change of User= leaves several uids."""
    label = owner_of(unit)
    return [(each, claim) for each in binder.list() for claim in each.claims if claim.label == label]


def spec_of(listener: ListenerStatus) -> ListenerSpec:
    """Return the request for the very listener, with the options that it has: one that is not asked for ends."""
    options = {name: value for name, value in listener.options.items() if name in OPTION_NAMES and name not in _DOUBLED}
    options |= {"backlog": listener.backlog_requested}
    netns = f"cookie:{listener.netns}" if listener.netns else ""
    return ListenerSpec(Address.parse(listener.address), Options(**options), shard=listener.shard, netns=netns)


def release(binder: Client, unit: str, *, drain_s: float = 0.0, leave_open: bool = False) -> list[str]:
    """Give up every claim of the unit, also those of a former user of it. Return the addresses."""
    by_owner: dict[str, list[ListenerStatus]] = {}
    for listener, claim in held(binder, unit):
        by_owner.setdefault(f"{claim.label}:{claim.uid}", []).append(listener)
    return [
        outcome.address
        for owner, listeners in by_owner.items()
        for outcome in binder.release(listeners, owner=owner, drain=drain_s, leave_open=leave_open)
    ]


class Passing(msgspec.Struct, frozen=True):
    """How the next start of a unit gets its listeners.

    ``styles`` are those of ``multibinder exec``; empty for the program's own. ``forks``: systemd expects that the
    command returns when the server is up (``Type=forking``), and ``pid_file`` is the unit's ``PIDFile=``, or empty.
    """

    unit: str
    styles: tuple[str, ...] = ()
    forks: bool = False
    pid_file: str = ""
