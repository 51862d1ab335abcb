"""The arguments of bind_tcp(), as people write them: in HAProxy's grammar, in one text or two, or by mistake."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from multibinder import AddressError, TcpAddress
from multibinder.wire.excerpt import excerpt
from multibinder_haproxy.config.model import HAPROXYS_OPTIONS, SLOT_OPTIONS

EXAMPLE = "bind_tcp('0.0.0.0', 80)"
#: HAProxy's prefixes of TCP addresses (configuration.txt, "Address formats"), and the IP version that each demands.
_TCP_PREFIXES = {"tcp": None, "ipv4": 4, "tcp4": 4, "ipv6": 6, "tcp6": 6}
#: The options that are no numbers, and examples.
_FLAGS = frozenset(["v6only", "freebind", "transparent"])
_TEXTS = {"name": "web", "interface": "eth0"}
_NUMBERS = {"backlog": 1000}
_PREFIX = re.compile(r"([a-z0-9+]+)@")
_NUMBER = re.compile(r"[0-9]+")
_RANGE = re.compile(r"([0-9]+)\s*-\s*([0-9]+)")


def read_address(arguments: Sequence[Any]) -> tuple[str, Sequence[int]]:
    """Return the numeric host and the ports that the arguments of a call mean. Raises AddressError."""
    if len(arguments) == 2:
        host, port = arguments
        if not isinstance(host, str):
            _refuse_host(host, port)
        return _host(host), _ports(port)
    if len(arguments) == 1:
        return _host_with_port(arguments[0])
    if arguments:
        _refuse("give an address, a port, and options by their names: write bind_tcp('0.0.0.0', 80, backlog=1000)")
    return _refuse(f"the address and the port are missing: write {EXAMPLE}")


def read_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a call, with their types. Raises AddressError."""
    options = dict(given)
    if unknown := sorted(options.keys() - set(SLOT_OPTIONS)):
        if own := HAPROXYS_OPTIONS.get(unknown[0]):
            _refuse(
                f"HAProxy sets {unknown[0]} by itself, at each load: write '{own} …' behind the call, as an option of "
                "the bind line"
            )
        raise AddressError(
            f"bind_tcp() has no option {', '.join(unknown)}; it has {', '.join(SLOT_OPTIONS)}. Options of HAProxy's "
            "stand behind the call: bind {{ bind_tcp('0.0.0.0', 443) }} ssl crt …"
        )
    for name, value in given.items():
        if value is None:
            continue
        if name in _FLAGS:
            if not isinstance(value, bool):
                _refuse(f"{name} is {_kind(value)}: write {name}=true or {name}=false")
        elif name in _TEXTS:
            if not isinstance(value, str):
                _refuse(f"the {name} is {_kind(value)}: write a text, as in {name}='{_TEXTS[name]}'")
        elif isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
            options[name] = int(value[:20])  # the values of env, and often those of --vars, are texts
        elif isinstance(value, bool) or not isinstance(value, int):
            _refuse(f"the {name} is {_kind(value)}: write a number, as in {name}={_NUMBERS.get(name, 1)}")
    return options


def shown(arguments: Sequence[Any]) -> str:
    """Return a call as a person would write it, for a message."""
    return f"bind_tcp({', '.join(_literal(argument) for argument in arguments)})"


def _host_with_port(address: Any) -> tuple[str, Sequence[int]]:
    """Read a call with one argument: ``host:port``."""
    if not isinstance(address, str):
        _refuse_host(address, None)
    text = address.strip()
    if _NUMBER.fullmatch(text) or _RANGE.fullmatch(text):
        _refuse_host(text, None)
    _refuse_what_is_not_one_tcp_address(text)
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        _refuse(f"the port is missing: write bind_tcp({_literal(text)}, 80)")
    if ":" in host and not host.endswith("]") and not _is_numeric(host):
        _refuse("write the brackets around an IPv6 address, and the port behind them: bind_tcp('[2001:db8::1]:80')")
    return _host(host), _ports(port)


def _host(text: str) -> str:
    """Return the host in HAProxy's grammar without what stands around it. An empty one and ``*`` are 0.0.0.0 there."""
    host = text.strip()
    if host.replace(".", "").isdecimal():  # most are IPv4 addresses
        return host
    _refuse_what_is_not_one_tcp_address(host)
    version = None
    if prefix := _PREFIX.match(host):
        host, version = host[prefix.end() :], _TCP_PREFIXES[prefix[1]]
    if host in ("", "*"):
        return "::" if version == 6 else "0.0.0.0"
    before, colon, after = host.rpartition(":")
    if colon and (before.endswith("]") or ":" not in before):
        _refuse(f"the address has a port already: write bind_tcp({_literal(before or '*')}, {after})")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if version is not None and version != (6 if ":" in host else 4):
        _refuse(f"{excerpt(repr(host))} is no IPv{version} address: leave the prefix out")
    return host


def _refuse_what_is_not_one_tcp_address(address: str) -> None:
    """Raise AddressError for a text that HAProxy's grammar allows, and that names no TCP address, or several."""
    prefix = _PREFIX.match(address)
    if "$" in address:
        _refuse("HAProxy's variables are not known here: write env.NAME, without quotes, instead of '$NAME'")
    if "," in address:
        _refuse("write one call for each address: {{ bind_tcp('…', 80) }},{{ bind_tcp('…', 80) }}")
    if address.startswith("/") or (prefix and prefix[1] not in _TCP_PREFIXES):
        _refuse(f"that is no TCP address: write it without bind_tcp(), so that HAProxy binds it: bind {address}")


def _ports(port: Any) -> Sequence[int]:
    if isinstance(port, int) and not isinstance(port, bool):
        if port < 0:
            _refuse("a range of ports stands in quotes, as in bind_tcp('0.0.0.0', '8000-8010')")
        return (port,)
    if not isinstance(port, str):
        _refuse(f"the port is {_kind(port)}: write a number, as in {EXAMPLE}")
    text = port.strip()
    if _NUMBER.fullmatch(text):
        return (_port(text),)
    if found := _RANGE.fullmatch(text):
        first, last = _port(found[1]), _port(found[2])
        if first > last:
            _refuse(f"the range of ports ends before it begins: write '{last}-{first}'")
        return range(first, last + 1)
    return _refuse(f"the port {excerpt(repr(port))} is no number: write {EXAMPLE}")


def _port(digits: str) -> int:
    # int() refuses thousands of digits.
    return TcpAddress.of("0.0.0.0", int(digits[:20])).port


def _refuse_host(host: Any, port: Any) -> NoReturn:
    """Raise AddressError for a host that is no text, or is a port."""
    if isinstance(host, int | str) and not isinstance(host, bool):
        if isinstance(port, str) and not _NUMBER.fullmatch(port):
            _refuse(f"the address comes first: write bind_tcp({_literal(port)}, {host})")
        if port is None:
            text = str(host) if _NUMBER.fullmatch(str(host)) else _literal(host)
            _refuse(f"the address is missing: write bind_tcp('0.0.0.0', {text})")
    _refuse(f"the address is {_kind(host)}: write it in quotes, as in {EXAMPLE}")


def _is_numeric(host: str) -> bool:
    try:
        TcpAddress.of(host, 0)
    except AddressError:
        return False
    return True


def _kind(value: Any) -> str:
    """Return what a value is, in the terms of a template."""
    if value is None or isinstance(value, bool):
        return _literal(value)
    if isinstance(value, int | float):
        return f"the number {value}"
    names = {str: "a text", list: "a list", tuple: "a list", dict: "a mapping"}
    if isinstance(value, str):
        return f"the text {excerpt(repr(value))}"
    return next(
        (name for kind, name in names.items() if isinstance(value, kind)), f"of the type {type(value).__name__}"
    )


def _literal(value: Any) -> str:
    """Return a value as a template has it."""
    return str(value).lower() if value is None or isinstance(value, bool) else excerpt(repr(value))


def _refuse(why: str) -> NoReturn:
    raise AddressError(why)
