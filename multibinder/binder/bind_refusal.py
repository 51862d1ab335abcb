"""Sentences for refused binds: the kernel's error, who has the address, and a remedy. Nothing is searched for here."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

import msgspec

from multibinder.binder.key import Key
from multibinder.binder.listener import Listener
from multibinder.binder.namespaces import path_in_use
from multibinder.binder.owner import Owner
from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from multibinder.wire.errors import BindError, errname
from multibinder.wire.kinds import OptionError
from multibinder.wire.messages import COULD_NOT_BIND, ListenerSpec


class Asker(msgspec.Struct, frozen=True):
    """The client that asks: its uid, and whether it may know about a listener that exists."""

    uid: int
    may_know: Callable[[Listener], bool] = lambda listener: True


class AddressInUse(BindError):
    """A socket that is not the binder's has the address. A search of /proc can tell whose it is.

    ``netns_path`` leads to the network namespace of the address, if that is not the binder's own. It is None if no path
    is known, so that nobody can search there.
    """

    def __init__(self, bound: Address, holders: str | None = "", netns_path: str | None = "", owner: str = "") -> None:
        """``holders`` names the processes; it is empty if they are unknown, and None if no socket listens there.

        ``owner`` is for the command that takes the address over.
        """
        why = _explain(bound, errno.EADDRINUSE, holders)
        if owner:
            why = why.replace("'multibinder adopt ", f"'multibinder adopt --owner {owner} ")
        super().__init__(
            f"Could not bind: {bound}: {why}",
            COULD_NOT_BIND,
            _data(bound, errno.EADDRINUSE),
        )
        self.bound = bound
        self.netns_path = netns_path


def refused_by_kernel(address: Address, error: OSError, netns: int = 0) -> BindError:
    """Return the refusal for an error of bind(2) or listen(2) in the namespace ``netns`` (``Key``)."""
    number = error.errno or 0
    if isinstance(error, OptionError):
        reason = f"option {error.option}: {os.strerror(number).lower()}{error.remedy}"
        return BindError(f"Could not bind: {address}: {reason}", COULD_NOT_BIND, _data(address, number))
    if number == errno.EADDRINUSE:
        return AddressInUse(address, netns_path=(path_in_use(netns) or None) if netns else "")
    return BindError(
        f"Could not bind: {address}: {_explain(address, number, '')}", COULD_NOT_BIND, _data(address, number)
    )


def held_by_binder(spec: ListenerSpec, holder: Listener, asker: Asker) -> BindError:
    """Return the refusal of an address that collides with a listener of the binder."""
    address = spec.address
    if not asker.may_know(holder):
        return BindError(
            f"Could not bind: {address}: address already in use; choose another address or port",
            COULD_NOT_BIND,
            _data(address, errno.EADDRINUSE),
        )
    owners = ", ".join(_owners(holder, asker)) or "no owner"
    remedy = _both(address, holder.address)
    if remedy and holder.address.family == socket.AF_INET6:
        owners += ", with v6only=false"
        remedy += ", which has to be released first"
    return BindError(
        f"Could not bind: {address}: address already in use, by {holder.key}, which this binder holds for "
        f"{owners}; {remedy or 'release it, or choose another address or port'}",
        COULD_NOT_BIND,
        _data(address, errno.EADDRINUSE) | _existing(holder, asker),
    )


def collides_in_request(address: Address, other: Address) -> BindError:
    """Return the refusal of two addresses of one request that cannot both listen."""
    return BindError(
        f"Could not bind: {address}: it collides with {other} of the same request; "
        f"{_both(address, other) or 'leave one of the two out'}",
        COULD_NOT_BIND,
        _data(address, errno.EADDRINUSE),
    )


def require_same(listener: Listener, spec: ListenerSpec, asker: Asker) -> None:
    """Raise BindError if ``spec`` asks to change what cannot change after bind(2). The error names both values."""
    has, wants = listener.options, spec.options
    if not spec.address.matches(listener.address):
        raise exists_with("address", listener.address, spec.address, spec)
    if not listener.matches(spec):
        # It was found by its name.
        raise exists_with("key", listener.key, Key.of(spec), spec)
    for option in sorted(listener.kind.fixed_options):
        is_now, wanted = getattr(has, option), getattr(wants, option)
        # Without a value, a flag is false.
        if wanted is not None and wanted != is_now and not (wanted is False and is_now is None):
            error = exists_with(option, "the default" if is_now is None else is_now, wanted, spec)
            raise BindError(str(error), error.code, {**error.data, **_existing(listener, asker)})


def exists_with(what: str, old: object, new: object, spec: ListenerSpec, why: str = "") -> BindError:
    """Return the refusal of a request for an existing listener with another value of ``what``."""
    because = why or "it cannot change while the socket lives"
    return BindError(
        f"Could not bind: {spec}: the listener exists with {what} {old}, and {new} was asked for; {because}. "
        "Release it first, or ask for the same",
        COULD_NOT_BIND,
        {"errno": errno.EINVAL, "errname": "EINVAL", "address": str(spec.address)},
    )


def _both(address: Address, other: Address) -> str:
    """Return how both addresses can be bound, as a part of a sentence. Empty if they cannot."""
    return kinds.of_address(address).collision_remedy(address, other)


def _existing(listener: Listener, asker: Asker) -> dict[str, object]:
    """Return what ``BindError`` tells of the listener that exists; nothing if its asker may not know."""
    if not asker.may_know(listener):
        return {}
    return {
        "listener": str(listener.key),
        "owners": _owners(listener, asker),
        "v6only": listener.options.v6only,
    }


def _owners(listener: Listener, asker: Asker) -> list[str]:
    return [_shown(owner, asker.uid) for owner in listener.claims]


def _shown(owner: Owner, uid: int) -> str:
    label = owner.label or "a client without a label"
    return label if owner.uid == uid else f"{label} of uid {owner.uid}"


def _explain(address: Address, number: int, holders: str | None) -> str:
    reason = os.strerror(number).lower()
    if (remedy := kinds.of_address(address).explain_refusal(address, number, holders)) is not None:
        return reason + remedy
    if number in (errno.EMFILE, errno.ENFILE):
        return f"{reason}: raise LimitNOFILE= in the binder's unit, or lower --max-listeners"
    return reason


def _data(address: Address, number: int) -> dict[str, object]:
    return {"errno": number, "errname": errname(number), "address": str(address)}


def not_recorded(address: Address, error: OSError) -> BindError:
    """Return the refusal of a bind whose record cannot be written."""
    number = error.errno or 0
    why = f"the binder cannot record the owner: {os.strerror(number)}; see 'journal-lost' in its log, and try again"
    return BindError(f"Could not bind: {address}: {why}", COULD_NOT_BIND, _data(address, number))
