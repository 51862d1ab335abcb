"""Ask the binder which listeners an owner has, and release those that it no longer needs."""

import time

from multibinder.launch.direct.connection import Connection
from multibinder.launch.direct.slots import address_of, distinguished

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    Slot = Mapping[str, Any]


def owned(path: str, label: str, timeout_s: float) -> "list[dict[str, Any]]":
    """Return the status of each listener to which this user has a claim with ``label``. Raises Refused, Away."""
    connection = Connection(path, time.monotonic() + timeout_s)
    try:
        # The binder says who we are: in a user namespace, our uid is another one there.
        uid = connection.ask("hello", []).get("uid")
        listeners = connection.ask("list", [])
        return [
            each
            for each in listeners
            if any(claim["label"] == label and uid in (None, claim["uid"]) for claim in each.get("claims", ()))
        ]
    finally:
        connection.close()


def unused(listeners: "Iterable[Mapping[str, Any]]", slots: "Sequence[Slot]") -> "list[Mapping[str, Any]]":
    """Return the listeners that none of ``slots`` asks for."""
    # The binder tells a namespace by its number, a slot by a name.
    here = {_key(slot) for slot in slots if not slot.get("netns")}
    elsewhere = {_key(slot) for slot in slots if slot.get("netns")}
    return [each for each in listeners if not _keys_of(each) & (elsewhere if each.get("netns") else here | elsewhere)]


def release(
    path: str, listeners: "Sequence[Mapping[str, Any]]", label: str, timeout_s: float
) -> "tuple[list[str], list[str]]":
    """Release listeners. Return the addresses that were closed, and those that another owner keeps open.

    Raises Refused, Away.
    """
    if not listeners:
        return [], []
    connection = Connection(path, time.monotonic() + timeout_s)
    try:
        outcomes = connection.ask("release", [_params(each, label) for each in listeners])
    finally:
        connection.close()
    closed = [each["address"] for each in outcomes if each["outcome"] == "closed"]
    return closed, [each["address"] for each in outcomes if each["outcome"] == "kept"]


def _params(listener: "Mapping[str, Any]", label: str) -> "dict[str, Any]":
    address = str(listener["address"])
    params: dict[str, Any] = {"owner": label}
    if "@" in address:
        params["endpoint"] = address
    else:
        host, _, port = address.rpartition(":")
        params |= {"address": host.removeprefix("[").removesuffix("]"), "port": int(port)}
    if listener.get("shard"):
        params["shard"] = listener["shard"]
    if listener.get("netns"):
        params["netns"] = f"cookie:{listener['netns']}"
    return params


def _key(slot: "Slot") -> str:
    address = distinguished(address_of(slot), slot.get("shard", 0), "")
    return f"{address} ({slot['name']})" if slot.get("name") else address


def _keys_of(listener: "Mapping[str, Any]") -> "set[str]":
    """Return the keys of the slots that this listener satisfies, without a namespace."""
    shard, name = listener.get("shard", 0), listener.get("name")
    address = distinguished(str(listener["address"]), shard, "")
    any_port = distinguished(f"{str(listener['address']).rpartition(':')[0]}:0", shard, "")
    return {address, f"{address} ({name})", f"{any_port} ({name})"}
