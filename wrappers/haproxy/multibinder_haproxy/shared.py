"""Find addresses of an instance that another owner has bound too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from multibinder import Address, Client, ListenerStatus, MultibinderError
from multibinder.wire import kinds
from multibinder.wire.status import OwnerStatus
from multibinder_haproxy.config.model import Slot

#: The owner of a socket unit's listener until a program binds it. It accepts nothing.
_INHERITED = OwnerStatus("inherited", 0)
#: The claims of 'multibinder systemd takeover' during a switch, in which the former server and this one share all.
_PASSING = "takeover@"
_TIMEOUT_S = 5.0
#: A sentence names so many addresses.
_NAMED = 5


def others_on(binder: str | None, slots: Sequence[Slot], owner: str) -> list[str]:
    """Return sentences about the addresses of ``slots`` on which ``owner`` does not get every client.

    The user of this process has the label ``owner``. The binder shows what this user may see. That two owners have one
    listener is right while one hands over to the other, so nothing is refused. The list is empty if the binder does not
    answer.
    """
    if not binder or not slots:
        return []
    try:
        with Client(binder, timeout=_TIMEOUT_S) as client:
            others = _Others(_of_others(client, owner))
    except MultibinderError:
        return []
    same: dict[str, list[str]] = defaultdict(list)
    overlapping: dict[str, list[str]] = defaultdict(list)
    for slot in {slot.key: slot for slot in slots}.values():
        for address, owners in others.with_the_address_of(slot):
            same[owners].append(address)
        for address, owners in others.overlapping(slot):
            overlapping[owners].append(f"{slot.spec.address} with {address}")
    return [
        f"{_listed(addresses)} {'is' if len(addresses) == 1 else 'are'} also bound by {owners}: each connection goes "
        "to one or the other; stop one of them, or choose another address or port"
        for owners, addresses in same.items()
    ] + [
        f"addresses overlap: {_listed(pairs)} of {owners}; the clients of both go to the more specific one"
        for owners, pairs in overlapping.items()
    ]


def _of_others(client: Client, owner: str) -> list[tuple[ListenerStatus, str]]:
    """Return the listeners that others than ``owner`` have bound, with the names of these others."""
    uid = client.hello().uid
    found: list[tuple[ListenerStatus, str]] = []
    for listener in client.list():
        # A binder of 0.1 has no claims: there a label belongs to one uid.
        claims = listener.claims or [OwnerStatus(label, uid or 0) for label in listener.owners]
        ours = (OwnerStatus(owner, uid or 0), _INHERITED)
        others = [claim for claim in claims if claim not in ours and not claim.label.startswith(_PASSING)]
        if others:
            names = [
                (claim.label or "a client without a label") + ("" if claim.uid == uid else f" of uid {claim.uid}")
                for claim in others
            ]
            found.append((listener, ", ".join(names)))
    return found


class _Others:
    """The listeners of others, by their addresses."""

    def __init__(self, listeners: Sequence[tuple[ListenerStatus, str]]) -> None:
        self._named = {listener.name: (listener, owners) for listener, owners in listeners if listener.name}
        self._taken: dict[Address, dict[Address, str]] = defaultdict(dict)
        self._below: dict[Address, dict[Address, str]] = defaultdict(dict)
        self._at: dict[Address, str] = {}
        for listener, owners in listeners:
            if listener.netns:
                continue  # in another network namespace, nothing is shared
            address = Address.parse(listener.address)
            self._at[address] = owners
            for taken in kinds.of_address(address).effective_addresses(address, listener.v6only):
                self._taken[taken][address] = owners
                self._below[taken.wildcard()][address] = owners

    def with_the_address_of(self, slot: Slot) -> Iterator[tuple[str, str]]:
        """Yield address and owners of the listener that a bind of this slot gives, if others have it, too."""
        address = slot.spec.address
        if address in self._at:
            yield str(address), self._at[address]
        elif slot.name in self._named:
            listener, owners = self._named[slot.name]
            if address.matches(Address.parse(listener.address)):
                yield listener.address, owners

    def overlapping(self, slot: Slot) -> Iterator[tuple[str, str]]:
        """Yield address and owners of each listener that overlaps with the address of this slot."""
        address = slot.spec.address
        found: dict[Address, str] = {}
        for taken in kinds.of_address(address).effective_addresses(address, slot.v6only):
            wildcard = taken.wildcard()
            if taken == wildcard:
                found |= self._below.get(wildcard, {})
            else:
                found |= self._taken.get(taken, {}) | self._taken.get(wildcard, {})
        return ((str(other), owners) for other, owners in found.items() if other != address)


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _NAMED
    return ", ".join(texts[:_NAMED]) + (f" and {more} more" if more > 0 else "")
