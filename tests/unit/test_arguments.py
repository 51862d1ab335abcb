"""A wrong argument of the library is an error of the library, with what to write instead; nothing is sent or left."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import multibinder
from multibinder import AddressError, ArgumentError, BinderUnavailable, ConfigurationError, LocalProtocolError
from tests.support import descriptors_unchanged

#: More digits than ``str`` gives.
HUGE = 10**5000


class Port(enum.IntEnum):
    HTTP = 8123


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize(
    ("arguments", "kind", "complaint"),
    [
        ({"port": "8000"}, AddressError, r"port '8000' is of type str: write int\('8000'\)"),
        ({"port": True}, AddressError, "port True is of type bool: give an int from 0 to 65535"),
        ({"port": 8000.0}, AddressError, "port 8000.0 is of type float"),
        ({"port": None}, AddressError, "has no port: write host:port"),
        ({"port": -1}, AddressError, "port -1 is out of range"),
        ({"port": 65536}, AddressError, "port 65536 is out of range"),
        ({"port": HUGE}, AddressError, "port of type int is out of range"),
        ({"host": b"127.0.0.1"}, AddressError, r"host b'127\.0\.0\.1' is of type bytes: give a str"),
        ({"host": None}, AddressError, "host None is of type NoneType"),
        ({"host": ["127.0.0.1"]}, AddressError, "is of type list"),
        ({"host": "127.0.0.1\0"}, AddressError, "give a numeric address"),
        ({"host": ""}, AddressError, "is ambiguous"),
        ({"backlog": 0}, AddressError, "backlog 0 is out of range: 1 to"),
        ({"backlog": -5}, AddressError, "backlog -5 is out of range"),
        ({"backlog": "5"}, AddressError, "backlog '5' is of type str: give an int"),
        ({"backlog": 5.0}, AddressError, "backlog 5.0 is of type float: give an int"),
        ({"backlog": True}, AddressError, "backlog True is of type bool: give an int"),
        ({"backlog": HUGE}, AddressError, "backlog of type int is out of range"),
        ({"host": "::1", "v6only": 1}, AddressError, "v6only 1 is of type int: give True or False"),
        ({"v6only": True}, AddressError, "v6only has a meaning for IPv6 addresses only"),
        ({"owner": None}, AddressError, "owner None is of type NoneType: give a str"),
        ({"owner": b"web"}, AddressError, "owner b'web' is of type bytes: give a str"),
        ({"owner": "a b"}, AddressError, "owner 'a b' is not usable"),
        ({"name": 5}, AddressError, "name 5 is of type int: give a str"),
        ({"name": ""}, AddressError, "name '' is not usable"),
        ({"timeout": 0}, ArgumentError, "timeout 0 leaves no time to ask: give seconds above 0, or None for no limit"),
        ({"timeout": -1.5}, ArgumentError, "timeout -1.5 leaves no time to ask"),
        ({"timeout": -HUGE}, ArgumentError, "timeout of type int leaves no time to ask"),
        ({"timeout": math.nan}, ArgumentError, r"timeout is not a number \(NaN\)"),
        ({"timeout": "10"}, ArgumentError, "timeout '10' is of type str: give a number of seconds"),
        ({"timeout": True}, ArgumentError, "timeout True is of type bool"),
        ({"wait": -1}, ArgumentError, "wait -1 is negative"),
        ({"wait": None}, ArgumentError, "wait None is of type NoneType"),
        ({"wait": math.nan}, ArgumentError, r"wait is not a number \(NaN\)"),
    ],
)
def test_a_wrong_argument_of_bind_is_our_error(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], kind: type[Exception], complaint: str, fallback: bool
) -> None:
    monkeypatch.delenv("MULTIBINDER_SOCK", raising=False)
    path = None if fallback else "/nowhere"
    given = {"host": "127.0.0.1", "port": 0, "socket_path": path, "fallback": fallback, **arguments}
    with descriptors_unchanged(), pytest.raises(kind, match=complaint) as refusal:
        multibinder.bind(given.pop("host"), given.pop("port"), **given)
    assert isinstance(refusal.value, ValueError)
    assert isinstance(refusal.value, multibinder.MultibinderError)


@pytest.mark.parametrize(
    "arguments",
    [
        {"timeout": None},
        {"timeout": math.inf},
        {"timeout": HUGE},
        {"timeout": 1e-9},
        {"port": Port.HTTP},
        {"owner": ""},
    ],
)
def test_an_unusual_argument_is_taken(arguments: dict[str, Any]) -> None:
    given = {"port": 8000, "socket_path": "/nowhere", **arguments}
    with pytest.raises(BinderUnavailable, match="there is no such socket"):
        multibinder.bind("127.0.0.1", given.pop("port"), **given)


def raises() -> Iterator[tuple[str, int]]:
    yield "127.0.0.1", 8000
    raise KeyError("of the caller")


class Unprintable:
    def __repr__(self) -> str:
        raise KeyError("of the caller")


@pytest.mark.parametrize(
    ("wanted", "kind", "complaint"),
    [
        ("127.0.0.1:80", LocalProtocolError, "'127.0.0.1:80' is one listener, and several are expected"),
        (("127.0.0.1", 80), LocalProtocolError, "is one listener, and several are expected: put it into a list"),
        (multibinder.TcpAddress.of("127.0.0.1", 80), LocalProtocolError, "is one listener"),
        (None, LocalProtocolError, "None is no list of listeners"),
        ([None], LocalProtocolError, "None is neither an address"),
        ([("127.0.0.1", 80, 1)], LocalProtocolError, "is neither an address"),
        (["127.0.0.1"], AddressError, "'127.0.0.1' has no port"),
        ([Unprintable()], LocalProtocolError, "of type Unprintable is neither an address"),
        ([("127.0.0.1", "80")], AddressError, "port '80' is of type str"),
        (raises(), KeyError, "of the caller"),
    ],
)
def test_a_wrong_list_of_listeners_is_an_error_before_anything_is_asked(
    wanted: Any, kind: type[Exception], complaint: str
) -> None:
    with descriptors_unchanged(), pytest.raises(kind, match=complaint):
        multibinder.bind_many(wanted, socket_path="/nowhere")


@pytest.mark.parametrize(
    ("path", "kind", "complaint"),
    [
        (
            "/" + "x" * 107,
            ConfigurationError,
            r"has 108 bytes, that of a Unix socket may have 107 .*: no binder serves /xxx.*; choose a shorter one",
        ),
        ("/" + "é" * 60, ConfigurationError, "has 121 bytes"),
        ("/" + "x" * 106, BinderUnavailable, "no such socket"),
        ("/tmp/a\0b", ConfigurationError, "has a NUL in it"),
        (5, ArgumentError, "socket_path is of type int: give the path as a str or a Path"),
        (Path("/nowhere"), BinderUnavailable, "no such socket"),
        (b"/nowhere", BinderUnavailable, "cannot reach the binder at /nowhere"),
    ],
)
def test_a_path_that_no_binder_can_have_is_our_error(path: Any, kind: type[Exception], complaint: str) -> None:
    with descriptors_unchanged(), pytest.raises(kind, match=complaint):
        multibinder.Client(path)


def test_a_path_that_is_too_long_is_our_error_also_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIBINDER_SOCK", "/" + "x" * 300)
    with descriptors_unchanged(), pytest.raises(ConfigurationError, match="301 bytes"):
        multibinder.bind("127.0.0.1", 0, fallback=True)


def test_what_no_address_can_be_read_from_is_our_error() -> None:
    for wrong in (5, b"127.0.0.1:80", None):
        for parse in (multibinder.Address.parse, multibinder.TcpAddress.parse):
            with pytest.raises(AddressError, match=r"is of type .*: give a str"):
                parse(wrong)  # type: ignore[arg-type]
    with pytest.raises(AddressError, match="ListenerSpec takes an Address and Options"):
        multibinder.ListenerSpec("127.0.0.1:80")  # type: ignore[arg-type]
    with pytest.raises(AddressError, match="ListenerSpec takes an Address and Options"):
        multibinder.ListenerSpec(multibinder.TcpAddress.of("127.0.0.1", 0), 5)  # type: ignore[arg-type]
