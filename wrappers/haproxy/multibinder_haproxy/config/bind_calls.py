"""bind_tcp() and its like: each call in a template becomes a slot, or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from multibinder import Address, AddressError, ListenerSpec, Options, TcpAddress
from multibinder.wire.spread import in_shards
from multibinder_haproxy.config.bind_arguments import (
    read_address,
    read_first_shard,
    read_netns,
    read_options,
    read_path,
    read_shards,
    shown,
    without_prefix,
)
from multibinder_haproxy.config.model import Slot, slot_of
from multibinder_haproxy.reexec.slots import QUIC

_NO_OPTIONS: Mapping[str, Any] = {}


class BindCalls:
    """Collects the slots of one configuration. Equal addresses have one slot, and must have equal options."""

    def __init__(self) -> None:
        self._slots: dict[str, Slot] = {}
        #: The functions of a template, by their names.
        self.functions: Mapping[str, Callable[..., str]] = {
            each.__name__: each
            for each in (self.bind_tcp, self.bind_mptcp, self.bind_unix, self.bind_udp, self.bind_quic)
        }

    @property
    def slots(self) -> list[Slot]:
        return list(self._slots.values())

    def bind_tcp(self, *arguments: Any, **options: Any) -> str:
        """Return the text for a bind line: a placeholder, or those of shards and of a range. Raises AddressError."""
        return self._bind("tcp", arguments, options)

    def bind_mptcp(self, *arguments: Any, **options: Any) -> str:
        """Return the text for a bind line of Multipath TCP. Raises AddressError."""
        return self._bind("mptcp", arguments, options)

    def bind_udp(self, *arguments: Any, **options: Any) -> str:
        """Return the text for a dgram-bind line of a log-forward section. Raises AddressError."""
        return self._bind("udp", arguments, options)

    def bind_quic(self, *arguments: Any, **options: Any) -> str:
        """Return the text for a bind line of QUIC, which HAProxy has from 2.8 on. Raises AddressError."""
        return self._bind("quic", arguments, options)

    def bind_unix(self, *arguments: Any, **options: Any) -> str:
        """Return the text for a bind line on a path or an abstract name. Raises AddressError."""
        given = (*arguments, options.pop("path")) if "path" in options else arguments
        try:
            return self._several([Address.parse(read_path(given))], "unix", options)
        except AddressError as error:
            raise _in_terms_of("unix", given, error) from None

    def _bind(self, name: str, arguments: Sequence[Any], options: dict[str, Any]) -> str:
        if options:
            arguments = (*arguments, *(options.pop(each) for each in ("host", "port") if each in options))
        try:
            host, ports = read_address(without_prefix(name, arguments))
            if name == "tcp" and not options and len(ports) == 1:
                # The host as the kernel prints it: 0:0::1 is ::1.
                return self._placeholder(Slot(TcpAddress.of(host, ports[0]).host, ports[0]))
            return self._several([_address(name, host, port) for port in ports], name, options)
        except AddressError as error:
            raise _in_terms_of(name, arguments, error) from None

    def _several(self, addresses: Sequence[Address], name: str, options: dict[str, Any]) -> str:
        shards, netns = read_shards(options.pop("shards", None)), read_netns(options.pop("netns", None))
        first = read_first_shard(options.pop("shard", None))
        checked = read_options(name, options) if options else _NO_OPTIONS
        if checked.get("name") is not None and len(addresses) > 1:
            raise AddressError("a name is for one listener, and a range is several: leave the name out")
        specs = [
            spec
            for address in addresses
            for spec in in_shards(ListenerSpec(address, Options(**checked), netns=netns), shards)
        ]
        if first:
            specs = [_in_later_shard(spec, first) for spec in specs]
        prefix = QUIC if name == "quic" else ""
        return ",".join([prefix + self._placeholder(slot_of(spec)) for spec in specs])

    def _placeholder(self, slot: Slot) -> str:
        known = self._slots.setdefault(slot.key, slot)
        if known is not slot and known != slot:
            raise AddressError(
                f"this address has different options elsewhere: {_options(known)}, and here {_options(slot)}; one "
                "address has one socket, so give the same options"
            )
        return slot.placeholder


def _in_later_shard(spec: ListenerSpec, first: int) -> ListenerSpec:
    in_shards(spec, first + spec.shard + 1)  # raises AddressError if the address cannot have so many
    return msgspec.structs.replace(spec, shard=first + spec.shard)


def _address(name: str, host: str, port: int) -> Address:
    if name == "tcp":
        return TcpAddress.of(host, port)
    family = ("6" if ":" in host else "4") if name == "quic" else ""
    return Address.parse(f"{name}{family}@[{host}]:{port}" if ":" in host else f"{name}{family}@{host}:{port}")


def _in_terms_of(name: str, arguments: Sequence[Any], error: AddressError) -> AddressError:
    """Return the error of a call with what was written, and with the name of the function."""
    said = str(error).replace("bind_tcp(", f"bind_{name}(")
    return AddressError(said if said.startswith(f"bind_{name}()") else f"{shown(name, arguments)}: {said}")


def _options(slot: Slot) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in slot.options.items()) or "no options"
