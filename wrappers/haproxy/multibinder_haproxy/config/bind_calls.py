"""bind_tcp(): each call in a template becomes a slot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multibinder import AddressError, TcpAddress
from multibinder_haproxy.config.bind_arguments import read_address, read_options, shown
from multibinder_haproxy.config.model import Slot

_NO_OPTIONS: Mapping[str, Any] = {}


class BindCalls:
    """Collects the slots of one configuration. Equal addresses have one slot, and must have equal options."""

    def __init__(self) -> None:
        self._slots: dict[str, Slot] = {}

    @property
    def slots(self) -> list[Slot]:
        return list(self._slots.values())

    def bind_tcp(self, *arguments: Any, **options: Any) -> str:
        """Return the text for a bind line: a placeholder, or those of a range of ports. Raises AddressError."""
        if options:
            arguments = (*arguments, *(options.pop(name) for name in ("host", "port") if name in options))
        try:
            host, ports = read_address(arguments)
            checked = read_options(options) if options else _NO_OPTIONS
            if len(ports) == 1:
                return self._placeholder(host, ports[0], checked)
            if checked.get("name") is not None:
                raise AddressError("a name is for one listener, and a range is several: leave the name out")
            return ",".join([self._placeholder(host, port, checked) for port in ports])
        except AddressError as error:
            said = str(error)
            raise AddressError(said if said.startswith("bind_tcp()") else f"{shown(arguments)}: {said}") from None

    def _placeholder(self, host: str, port: int, options: Mapping[str, Any]) -> str:
        # The host as the kernel prints it: 0:0::1 is ::1.
        slot = Slot(TcpAddress.of(host, port).host, port, **options)
        if options:
            slot.spec  # noqa: B018 (raises AddressError for values that make no sense)
        known = self._slots.setdefault(slot.key, slot)
        if known is not slot and known != slot:
            raise AddressError(
                f"this address has different options elsewhere: {_options(known)}, and here {_options(slot)}; one "
                "address has one socket, so give the same options"
            )
        return slot.placeholder


def _options(slot: Slot) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in slot.options.items()) or "no options"
