"""A slot: a listener that is asked for, as plain JSON.

A slot has ``host`` and ``port``, or ``endpoint``, and perhaps ``shard``, ``netns`` and options: those of
``wire.messages.ListenerSpec``.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def key_of(slot: "Mapping[str, Any]") -> str:
    """Return a text that is equal for two slots that share a descriptor: ``[::1]:80``, ``127.0.0.1:0 (stats)``."""
    name = slot.get("name")
    address = distinguished(address_of(slot), slot.get("shard", 0), slot.get("netns", ""))
    return f"{address} ({name})" if name is not None else address


def distinguished(address: str, shard: int, netns: str) -> str:
    """Return an address with what distinguishes several listeners on it."""
    return f"{address}{f' shard {shard}' if shard else ''}{f' netns {netns}' if netns else ''}"


def address_of(slot: "Mapping[str, Any]") -> str:
    """Return the address of a slot as HAProxy and we write it."""
    if slot.get("endpoint"):
        return str(slot["endpoint"])
    host = f"[{slot['host']}]" if ":" in slot["host"] else slot["host"]
    return f"{host}:{slot['port']}"


def slot_of(key: str) -> "dict[str, Any]":
    """Return the address of a slot from its key. Raises ValueError."""
    address = key.partition(" ")[0]
    if "@" in address:
        return {"endpoint": address}
    host, _, port = address.rpartition(":")
    return {"host": host.removeprefix("[").removesuffix("]"), "port": int(port)}
