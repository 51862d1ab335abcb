"""What a caller may name a listener by, and the specification that each of them means."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from multibinder.wire import kinds
from multibinder.wire.addresses import Address, TcpAddress
from multibinder.wire.errors import LocalProtocolError
from multibinder.wire.excerpt import shown
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.shared_listener import SharedListener
from multibinder.wire.status import ListenerHealth, ListenerStatus

#: A listener to ask for: ``(host, port)`` of a TCP listener, an address, or an address with options.
BindTarget = ListenerSpec | Address | tuple[str, int]
#: A listener to release: also what ``bind``, ``Client.list`` and ``Client.status`` return.
ReleaseTarget = BindTarget | SharedListener | ListenerStatus | ListenerHealth


def specs_of(wanted: Iterable[ReleaseTarget]) -> list[ListenerSpec]:
    """Return the specification of each target. Raises AddressError, LocalProtocolError, and what ``wanted`` raises."""
    match wanted:
        case (
            str() | Address() | ListenerSpec() | ListenerStatus() | ListenerHealth() | socket.socket() | (str(), int())
        ):
            raise LocalProtocolError(f"{shown(wanted)} is one listener, and several are expected: put it into a list")
        case Iterable():
            return [spec_of(item) for item in wanted]
    raise LocalProtocolError(f"{shown(wanted)} is no list of listeners")


def spec_of(target: ReleaseTarget) -> ListenerSpec:
    """Return the specification that a target means. Raises AddressError, LocalProtocolError."""
    match target:
        case ListenerSpec():
            return target
        case Address():
            return ListenerSpec(target)
        case ListenerStatus(address=address) | ListenerHealth(address=address):
            return ListenerSpec(Address.parse(address))
        case socket.socket():
            return ListenerSpec(_address_of(target))
        case (host, port):
            return ListenerSpec(TcpAddress.of(host, port))
    remedy = "; write Address.parse(…)" if isinstance(target, str) else ""
    raise LocalProtocolError(f"{shown(target)} is neither an address, a (host, port) tuple nor a ListenerSpec{remedy}")


def _address_of(sock: socket.socket) -> Address:
    try:
        address = kinds.address_of(sock)
    except OSError as error:
        raise LocalProtocolError(
            f"{shown(sock)} has no address any more ({error.strerror}): name it by address"
        ) from error
    if address is None:
        raise LocalProtocolError(f"{shown(sock)} is no socket that a binder can hold")
    return address
