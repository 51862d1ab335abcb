"""``-b ADDRESS[,OPTION=VALUE...][=NAME]``: listeners to ask for, of ``exec`` and ``run``.

``exec/quick.py`` reads the usual ones faster, with the same result.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from multibinder.launch.run.settings import Bind
from multibinder.wire.addresses import Address
from multibinder.wire.errors import AddressError
from multibinder.wire.excerpt import excerpt
from multibinder.wire.listener_options import options_of
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.options import OPTION_NAMES, check_netns
from multibinder.wire.spread import Shards, addresses_in, in_shards

#: The options of ``-b``: those of a listener. Its name is that after ``=``.
_OPTIONS = (*(name for name in OPTION_NAMES if name != "name"), "shards", "netns")
#: A name is a word between braces, in LISTEN_FDNAMES and in a metric; ``{ready}`` is the private listener of 'run'.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_RESERVED = ("ready",)
#: An option; an address has ':', '@' or '/' before its '='.
_OPTION = re.compile(r"([A-Za-z][A-Za-z0-9_-]*)=(.*)", re.DOTALL)
_FLAGS = ("v6only", "freebind", "transparent")
_EXAMPLES = {
    "mode": "660",
    "user": "www-data",
    "group": "www-data",
    "interface": "eth0",
    "netns": "blue",
    "shards": "4",
    "tos": "16",
}
_BOOLEANS = {"true": True, "false": False}


def parse(text: str) -> Bind:
    """Return the listeners that a text stands for, which have one name and the same options. Raises AddressError."""
    name = ""
    addresses: list[str] = []
    given: dict[str, str] = {}
    parts = text.split(",")
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        if found := _OPTION.fullmatch(part):
            option, value = found[1].replace("-", "_"), found[2]
            if is_last and "=" in value:
                value, _, name = value.rpartition("=")
                _check_name(name, text)
            if option not in _OPTIONS:
                raise AddressError(_no_option(found[1], text))
            if option in given:
                raise AddressError(f"{excerpt(repr(text))}: {option} is given twice")
            given[option] = value
        elif part in _OPTIONS:
            raise AddressError(f"{excerpt(repr(text))}: {part} has no value: write {part}={_example(part)}")
        elif given:
            raise AddressError(f"{excerpt(repr(text))}: addresses stand before options, and {part!r} is no option")
        else:
            if "=" in part:
                if not is_last:
                    raise AddressError(_not_at_the_end(text))
                part, _, name = part.rpartition("=")
                _check_name(name, text)
            addresses.append(part)
    if not addresses:
        raise AddressError(f"{excerpt(repr(text))} has no address: write 0.0.0.0:80, [::]:80 or unix@/path first")
    return Bind(text=text, name=name, slots=_slots(text, addresses, name, given))


def parse_all(texts: list[str]) -> list[Bind]:
    """Return the binds of several texts. Raises AddressError, also if two of them name one listener."""
    binds = [parse(text) for text in texts]
    seen: dict[str, str] = {}
    names: dict[str, str] = {}
    for bind in binds:
        for slot in bind.slots:
            key = str([slot.get(part) for part in ("host", "port", "endpoint", "shard", "netns", "name")])
            if key in seen:
                again = "twice" if seen[key] == bind.text else f"by {excerpt(repr(seen[key]))} too"
                raise AddressError(f"{excerpt(repr(bind.text))} is given {again}: a listener has one name")
            seen[key] = bind.text
        if bind.name and bind.name in names:
            raise AddressError(
                f"{excerpt(repr(names[bind.name]))} and {excerpt(repr(bind.text))} have the same name {bind.name}: "
                "give each a name of its own, or write them as one, with a comma between the addresses"
            )
        names[bind.name] = bind.text
    return binds


def _slots(text: str, addresses: list[str], name: str, given: dict[str, str]) -> list[dict[str, str | int | bool]]:
    values: dict[str, Any] = {option: _value(option, value, text) for option, value in given.items()}
    shards: Shards | None = values.pop("shards", None)
    netns = values.pop("netns", "")
    found: list[dict[str, str | int | bool]] = []
    every = addresses_in(",".join(addresses))
    for address in every:
        own = dict(values)
        if _has_port_0(address):
            if len(every) > 1:
                raise AddressError(f"{excerpt(repr(text))}: port 0 stands alone, because its name finds one listener")
            if not name:
                raise AddressError(
                    f"{excerpt(repr(text))}: for port 0 the kernel chooses a port, which the next start finds by the "
                    f"name of the listener: write {text}=NAME"
                )
            own["name"] = name
        try:
            specs = in_shards(ListenerSpec(address, options_of(own), netns=netns), shards)
        except AddressError as error:
            raise AddressError(f"{excerpt(repr(text))}: {error}") from None
        found += [slot_of(spec) for spec in specs]
    return found


def slot_of(spec: ListenerSpec) -> dict[str, str | int | bool]:
    """Return a listener as ``launch/direct`` and the styles know it."""
    fields: dict[str, Any] = spec.address.wire_fields()
    if "address" in fields:
        fields["host"] = fields.pop("address")
    fields |= {name: value for name, value in msgspec.structs.asdict(spec.options).items() if value is not None}
    more = {"shard": spec.shard, "netns": spec.netns, "shards": spec.shards}
    return fields | {name: value for name, value in more.items() if value}


def _has_port_0(address: Address) -> bool:
    return address.ip_endpoint is not None and address.ip_endpoint.port == 0


def _value(option: str, value: str, text: str) -> str | int | bool:
    where = excerpt(repr(text))
    if option in ("user", "group", "interface"):
        return value
    if option == "netns":
        return check_netns(value)
    if option in _FLAGS:
        if value not in _BOOLEANS:
            raise AddressError(f"{where}: {option} is true or false, not {excerpt(repr(value))}")
        return _BOOLEANS[value]
    if option == "mode":
        if not re.fullmatch("[0-7]{3,4}", value):
            raise AddressError(f"{where}: the mode is written as chmod(1) has it, as in mode=660, not {value!r}")
        return int(value, 8)
    if option == "shards" and value == "cpus":
        return value
    if not re.fullmatch("[0-9]{1,18}", value):
        raise AddressError(
            f"{where}: {option} is a number, as in {option}={_example(option)}, not {excerpt(repr(value))}"
        )
    return int(value)


def _example(option: str) -> str:
    examples = {
        "mode": "660",
        "user": "www-data",
        "group": "www-data",
        "interface": "eth0",
        "netns": "blue",
        "shards": "4",
    }
    return "true" if option in _FLAGS else examples.get(option, "1000")


def _check_name(name: str, text: str) -> None:
    if not _NAME.fullmatch(name):
        raise AddressError(
            f"{excerpt(repr(text))}: the name {excerpt(repr(name))} is not usable: 1 to 64 of A-Z a-z 0-9 _ . -, with "
            "a letter first"
        )
    if name in _RESERVED:
        raise AddressError(
            f"{excerpt(repr(text))}: {{{name}}} is the private listener for the checks of 'run': choose another name"
        )


def _no_option(option: str, text: str) -> str:
    return f"{excerpt(repr(text))}: there is no option {option}; a listener has {', '.join(_OPTIONS)}"


def _not_at_the_end(text: str) -> str:
    return f"{excerpt(repr(text))}: the name is the last part, after the options: ADDRESS,OPTION=VALUE=NAME"
