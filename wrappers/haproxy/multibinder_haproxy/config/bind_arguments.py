"""The arguments of bind_tcp() and its like, as people write them: in HAProxy's grammar, in one text or two."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from multibinder import AddressError, TcpAddress
from multibinder.wire.excerpt import excerpt
from multibinder.wire.kinds import KINDS
from multibinder.wire.listener_options import group_id, user_id
from multibinder.wire.spread import Shards
from multibinder_haproxy.config.model import HAPROXYS_OPTIONS, SLOT_OPTIONS

EXAMPLE = "bind_tcp('0.0.0.0', 80)"
#: HAProxy's prefixes of TCP addresses (configuration.txt, "Address formats"), and the IP version that each demands.
_TCP_PREFIXES = {"tcp": None, "ipv4": 4, "tcp4": 4, "ipv6": 6, "tcp6": 6}
#: Values of options for messages.
_EXAMPLES = {"name": "web", "interface": "eth0", "backlog": 1000}
_KINDS = {kind.name: kind for kind in KINDS}
#: The functions for the other prefixes of HAProxy's.
_OTHERS = {
    **dict.fromkeys(("unix", "uxst", "uxdg", "abns", "abnsz"), "bind_unix"),
    **dict.fromkeys(("quic4", "quic6"), "bind_quic"),
    "mptcp": "bind_mptcp",
    "udp": "bind_udp",
}
#: The prefixes of the addresses of bind_unix(): a path of a stream socket has none.
_OF_UNIX = re.compile(r"(?:unix|uxst|uxdg|abns|abnsz)@")
#: What begins a comment, a variable or a quoted text in HAProxy's files, ends a word, or ends a placeholder.
_NOT_IN_A_PATH = re.compile(r"[\s{}\"'\\#$,]")
_NETNS = re.compile(r"[^\s{}()\"'\\#$,]+")
_MODE = re.compile(r"[0-7]{3,4}")
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


def read_path(arguments: Sequence[Any]) -> str:
    """Return the address that the arguments of bind_unix() mean, with a prefix. Raises AddressError."""
    if len(arguments) != 1 or not isinstance(arguments[0], str):
        _refuse("give one path, and options by their names: write bind_unix('/run/app.sock', mode='660')")
    text = arguments[0].strip()
    found = _OF_UNIX.match(text)
    prefix, path = (found[0], text[found.end() :]) if found else ("unix@", text)
    if not path.startswith("/") and not prefix.startswith("abns"):
        _refuse("a path is absolute: write bind_unix('/run/app.sock')")
    if unusable := _NOT_IN_A_PATH.search(path):
        _refuse(f"HAProxy reads {unusable[0]!r} of a path as something else: choose another path")
    return prefix + path


def without_prefix(name: str, arguments: Sequence[Any]) -> Sequence[Any]:
    """Return the arguments without the prefix that the function of this name has in HAProxy's grammar."""
    if name == "tcp" or not arguments or not isinstance(arguments[0], str):
        return arguments
    found = re.match(rf"\s*{name}([46]?)@", arguments[0])
    if found is None:
        return arguments
    version = f"ipv{found[1]}@" if found[1] else ""
    return (version + arguments[0][found.end() :], *arguments[1:])


def read_shards(given: Any) -> Shards | None:
    """Return the number of shards of a call; None if it has none. Raises AddressError."""
    if isinstance(given, str) and given.strip() != "cpus":
        if not _NUMBER.fullmatch(given.strip()):
            _refuse(f"shards is {_kind(given)}: write a number, or shards='cpus' for one on each processor")
        return int(given.strip()[:20])
    if given is not None and not isinstance(given, str) and (isinstance(given, bool) or not isinstance(given, int)):
        _refuse(f"shards is {_kind(given)}: write a number, as in shards=4")
    return "cpus" if isinstance(given, str) else given


def read_first_shard(given: Any) -> int:
    """Return the number of the first shard of a call, 0 without one. Raises AddressError."""
    if given is None:
        return 0
    number = _number("shard", given)
    if number < 0:
        _refuse(f"shard {number} is no number of a shard: they count from 0")
    return number


def read_netns(given: Any) -> str:
    """Return the network namespace of a call; empty for the binder's own. Raises AddressError."""
    if given is not None and not isinstance(given, str):
        _refuse(f"netns is {_kind(given)}: write a name or a path, as in netns='blue'")
    if given and not _NETNS.fullmatch(given):
        _refuse(f"netns {excerpt(repr(given))} has characters that a template cannot carry: choose another name")
    return given or ""


def read_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a call, with their types. Raises AddressError."""
    options = dict(given)
    kind = _KINDS["udp" if name == "quic" else name]
    known = [option for option in SLOT_OPTIONS if option in kind.fixed_options | kind.live_options | {"name"}]
    if unknown := sorted(options.keys() - set(known)):
        if name == "tcp" and (own := HAPROXYS_OPTIONS.get(unknown[0])):
            _refuse(
                f"HAProxy sets {unknown[0]} by itself, at each load: write '{own} …' behind the call, as an option of "
                "the bind line"
            )
        raise AddressError(
            f"bind_tcp() has no option {', '.join(unknown)}; it has {', '.join(known)}. Options of HAProxy's "
            "stand behind the call: bind {{ bind_tcp('0.0.0.0', 443) }} ssl crt …"
        )
    for option, value in given.items():
        if value is not None:
            options[option] = _read(option, value)
    return options


def shown(name: str, arguments: Sequence[Any]) -> str:
    """Return a call as a person would write it, for a message."""
    return f"bind_{name}({', '.join(_literal(argument) for argument in arguments)})"


def _number(option: str, value: Any) -> int:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return int(value.strip()[:20])  # the values of env, and often those of --vars, are texts
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse(f"the {option} is {_kind(value)}: write a number, as in {option}={_EXAMPLES.get(option, 1)}")
    return value


def _flag(option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        _refuse(f"{option} is {_kind(value)}: write {option}=true or {option}=false")
    return value


def _text(option: str, value: Any) -> str:
    if not isinstance(value, str):
        _refuse(f"the {option} is {_kind(value)}: write a text, as in {option}='{_EXAMPLES[option]}'")
    return value


def _mode(option: str, value: Any) -> int:
    # 440 of a template is not 0440, and would be taken for 0670.
    if not isinstance(value, str) or not _MODE.fullmatch(value.strip()):
        _refuse(f"the {option} is {_kind(value)}: write it as HAProxy has it, in quotes: mode='660'")
    return int(value, 8)


def _read(option: str, value: Any) -> Any:
    return _READERS[option](option, value) if option in _READERS else _number(option, value)


def _user_or_group(option: str, value: Any) -> int:
    if isinstance(value, str):
        return user_id(value) if option == "user" else group_id(value)
    return _number(option, value)


_READERS: Mapping[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("v6only", "freebind", "transparent"), _flag),
    **dict.fromkeys(("name", "interface"), _text),
    **dict.fromkeys(("user", "group"), _user_or_group),
    "mode": _mode,
}


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
    other = "bind_unix" if address.startswith("/") else _OTHERS.get(prefix[1]) if prefix else None
    if other:
        _refuse(f"that is no TCP address: write {other}({_literal(address)})")
    if prefix and prefix[1] not in _TCP_PREFIXES:
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
