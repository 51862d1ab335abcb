from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from multibinder.wire.addresses import AbstractAddress, Address, UnixAddress
from multibinder.wire.errors import AddressError
from multibinder.wire.kinds import address_of


@pytest.mark.parametrize(
    ("text", "printed", "sort"),
    [
        ("unix@/run/app.sock", "unix@/run/app.sock", socket.SOCK_STREAM),
        ("uxst@/run/app.sock", "unix@/run/app.sock", socket.SOCK_STREAM),
        ("/run/app.sock", "unix@/run/app.sock", socket.SOCK_STREAM),
        ("uxdg@/run/log", "uxdg@/run/log", socket.SOCK_DGRAM),
        ("unixseq@/run/app sock", "unixseq@/run/app sock", socket.SOCK_SEQPACKET),
    ],
)
def test_a_path_is_read_in_haproxys_grammar_and_printed_so_that_it_parses_again(
    text: str, printed: str, sort: int
) -> None:
    address = Address.parse(text)
    assert isinstance(address, UnixAddress)
    assert (str(address), address.type, address.path) == (printed, sort, text.partition("@")[2] or text)
    assert Address.parse(str(address)) == address
    assert address.wire_fields() == {"endpoint": printed}


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("run/app.sock", "is no absolute path"),
        ("", "is no absolute path"),
        ("/run/../etc/x", "is not normalized"),
        ("/run/./x", "is not normalized"),
        ("//run/x", "is not normalized"),
        ("/run//x", "is not normalized"),
        ("/run/x/", "is not normalized"),
        ("/", "is not normalized"),
        ("/run/a\0b", "has control characters"),
        ("/run/a\nb", "has control characters"),
        ("/run/\udcff", "has control characters, or is not UTF-8"),
        ("/" + "x" * 107, "has 108 bytes, the path of a Unix socket may have 107"),
        ("/" + "é" * 54, "has 109 bytes"),
    ],
)
def test_a_path_that_has_another_name_too_or_is_too_long_is_refused(path: str, complaint: str) -> None:
    with pytest.raises(AddressError, match=complaint):
        Address.parse(f"unix@{path}")


@pytest.mark.parametrize(("text", "size"), [("abns@web", 108), ("abnsz@web", 4), ("abnsz@" + "x" * 106, 107)])
def test_an_abstract_name_is_padded_as_haproxy_does_or_is_as_long_as_it_is(text: str, size: int) -> None:
    address = Address.parse(text)
    assert isinstance(address, AbstractAddress)
    assert str(address) == text
    assert len(address.sockaddr) == size
    with socket.socket(socket.AF_UNIX) as sock:
        if text == "abns@web":
            return  # the test below binds it
        sock.bind(address.sockaddr[:1] + f"{os.getpid()}-".encode() + address.sockaddr[1:20])
        assert isinstance(address_of(sock), AbstractAddress)


def test_the_address_of_a_bound_socket_is_the_one_that_it_was_bound_to(tmp_path: Path) -> None:
    texts = [f"{prefix}{tmp_path}/{i}" for i, prefix in enumerate(("unix@", "uxdg@", "unixseq@"))]
    for text in (*texts, f"abns@mb-{os.getpid()}", f"abnsz@mb-{os.getpid()}"):
        address = Address.parse(text)
        with socket.socket(address.family, getattr(address, "type")) as sock:  # noqa: B009 (of both families)
            sock.bind(address.sockaddr)
            assert address_of(sock) == address


def test_a_name_that_fills_sun_path_is_the_same_padded_or_not() -> None:
    full = "x" * 107
    assert Address.parse(f"abns@{full}") == Address.parse(f"abnsz@{full}")
    with pytest.raises(AddressError, match="has 108 bytes"):
        Address.parse(f"abns@{full}x")


@pytest.mark.parametrize("name", ["", "a b", "a\0b", "a\nb", "\udcff"])
def test_an_abstract_name_that_a_log_line_cannot_show_is_refused(name: str) -> None:
    with pytest.raises(AddressError, match="is no usable abstract name"):
        Address.parse(f"abnsz@{name}")


def test_a_socket_without_a_usable_name_has_no_address(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unnamed, socket.socket(socket.AF_UNIX) as raw:
        raw.bind(b"\0\xff\xfe")
        assert address_of(unnamed) is None
        assert address_of(raw) is None
