"""Sockets of vsock(7) are bound, listen and are handed over. There is no loopback for them to connect to here."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from multibinder import Address, AddressError, Options
from multibinder.kernel.socket_options import cookie_of, netns_cookie_of
from multibinder.wire import kinds
from multibinder.wire.addresses import VsockAddress
from multibinder.wire.kinds.vsock import VSOCK
from tests.support import descriptors_unchanged, require

ANY = VsockAddress.parse("vsock@*:0")


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    try:
        sock = VSOCK.open(ANY, Options())
    except OSError as error:
        require("vsock", error.errno != errno.EAFNOSUPPORT, "this kernel has no vsock")
        raise
    with sock:
        yield sock


def test_a_socket_is_bound_and_listens(sock: socket.socket) -> None:
    assert kinds.of_socket(sock) is VSOCK
    address = VSOCK.address_of(sock)
    assert address.is_wildcard
    assert address.port
    assert ANY.matches(address)
    assert not VSOCK.is_ready(sock)
    assert VSOCK.make_ready(sock, 5) == 5
    assert VSOCK.is_ready(sock)
    assert VSOCK.queue(sock).ready
    assert not VSOCK.tells_queue
    assert not VSOCK.tells_drops


def test_it_is_identified_like_any_other_socket(sock: socket.socket) -> None:
    with sock.dup() as copy, socket.socket() as tcp:
        assert cookie_of(copy) == cookie_of(sock) != 0
        assert netns_cookie_of(sock) == netns_cookie_of(tcp)


def test_shutdown_by_a_holder_changes_nothing(sock: socket.socket) -> None:
    VSOCK.make_ready(sock, 5)
    with pytest.raises(OSError, match="not connected"):
        sock.shutdown(socket.SHUT_RDWR)
    assert VSOCK.is_ready(sock)
    assert VSOCK.repair(sock, VSOCK.address_of(sock), Options(backlog=5)) == (5, None)
    VSOCK.retire(sock)


def test_an_address_in_use_is_refused(sock: socket.socket) -> None:
    with descriptors_unchanged(), pytest.raises(OSError, match="in use"):
        VSOCK.open(VSOCK.address_of(sock), Options())


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EAFNOSUPPORT, "(drop-in vsock.conf)"),
        (errno.EACCES, "CAP_NET_BIND_SERVICE"),
        (errno.EADDRINUSE, "ss -lnp --vsock"),
        (errno.EADDRNOTAVAIL, "write vsock@*:PORT"),
    ],
)
def test_a_refusal_comes_with_its_remedy(number: int, remedy: str) -> None:
    assert remedy in (VSOCK.explain_refusal(ANY, number, None) or "")
    assert VSOCK.explain_refusal(ANY, errno.EMFILE, None) is None


def test_an_address_is_printed_as_it_is_read() -> None:
    for text in ("vsock@3:1024", "vsock@*:1024", "vsock@*:0"):
        address = Address.parse(text)
        assert isinstance(address, VsockAddress)
        assert str(address) == text
        assert address.wire_fields() == {"endpoint": text}
        assert address.wildcard().is_wildcard
        assert address.any_port().matches(address)
    assert str(Address.parse("vsock@4294967295:1")) == "vsock@*:1"
    assert VsockAddress.of(3, 7).sockaddr == (3, 7)
    assert VSOCK.ss_command(VsockAddress.of(3, 7), "p") == "ss -lnp --vsock 'sport = :7'"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("vsock@3", "is no vsock address: write vsock@CID:PORT"),
        ("vsock@-1:3", "is no vsock address: write vsock@CID:PORT"),
        ("vsock@3:4294967295", "port 4294967295 is out of range: a vsock port is a number from 0 to 4294967294"),
        ("vsock@4294967296:3", "CID 4294967296 is out of range"),
    ],
)
def test_text_that_is_no_address_is_refused_with_a_reason(text: str, complaint: str) -> None:
    with pytest.raises(AddressError) as refusal:
        Address.parse(text)
    assert complaint in str(refusal.value)
