from __future__ import annotations

import itertools
import socket

import pytest

from multibinder import Address, AddressError, MultibinderError, TcpAddress
from multibinder.wire.kinds import address_of
from tests.support import require_ipv6


@pytest.mark.parametrize(
    "text",
    ["192.0.2.1:80", "0.0.0.0:0", "127.0.0.1:65535", "[::]:443", "[2001:db8::1]:8080", "[::1]:1", "[fe80::1]:22"],
)
def test_parsing_a_printed_address_gives_the_same_address(text: str) -> None:
    address = TcpAddress.parse(text)
    assert str(address) == text
    assert TcpAddress.parse(str(address)) == address


@pytest.mark.parametrize("host", ["192.0.2.1", "::ffff:192.0.2.1", "2001:DB8:0::1", "0:0:0:0:0:0:0:0"])
def test_a_built_address_prints_as_text_that_parses_to_it(host: str) -> None:
    address = TcpAddress.of(host, 80)
    assert TcpAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("ipv4@192.0.2.1:80", "192.0.2.1:80"),
        ("tcp4@192.0.2.1:80", "192.0.2.1:80"),
        ("tcp@192.0.2.1:80", "192.0.2.1:80"),
        ("ipv6@[::1]:80", "[::1]:80"),
        ("tcp6@::1:80", "[::1]:80"),
        ("tcp@[::1]:80", "[::1]:80"),
        (":::443", "[::]:443"),
        ("[2001:db8:0:0:0:0:0:1]:80", "[2001:db8::1]:80"),
    ],
)
def test_haproxys_ways_to_write_an_address_are_read(text: str, same: str) -> None:
    assert TcpAddress.parse(text) == TcpAddress.parse(same)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("127.0.0.1:70000", "port 70000 is out of range: a TCP port is a number from 0 to 65535"),
        ("127.0.0.1:65536", "port 65536 is out of range"),
        ("127.0.0.1:-1", "has no port"),
        ("127.0.0.1:", "has no port"),
        ("127.0.0.1:http", "has no port"),
        ("127.0.0.1:٨٠", "has no port"),
        ("127.0.0.1", "has no port: write host:port, as in 192.0.2.1:80 or [2001:db8::1]:443"),
        ("", "has no port"),
        ("[::1]", "has no port"),
        (":80", "host '' is ambiguous: write 0.0.0.0 for every IPv4 address, :: for IPv6"),
        ("*:80", "host '*' is ambiguous: write 0.0.0.0"),
        ("[]:80", "host '' is ambiguous"),
        ("localhost:80", "host 'localhost' is a name: give a numeric address"),
        ("www.example.org:80", "a listener must not depend on that"),
        ("[fe80::1%eth0]:80", "host 'fe80::1%eth0' has an IPv6 scope, which is not supported"),
        ("1.2.3.300:80", "host '1.2.3.300' is not a valid IP address"),
        ("1.2.3:80", "host '1.2.3' is not a valid IP address"),
        ("010.0.0.1:80", "host '010.0.0.1' is not a valid IP address"),
        ("[::1::]:80", "host '::1::' is not a valid IP address"),
        ("[::1:80", "host '[::1' is not a valid IP address"),
        ("udp@192.0.2.1:80", "udp@ is no prefix of a TCP address"),
        ("unix@/run/web.sock", "unix@ is no prefix of a TCP address"),
        ("abns@web", "abns@ is no prefix of a TCP address"),
        ("fd@3", "fd@ is no prefix of a TCP address"),
        ("ipv4@[::1]:80", "::1 is not an IPv4 address"),
        ("ipv6@192.0.2.1:80", "192.0.2.1 is not an IPv6 address"),
    ],
)
def test_text_that_is_no_address_is_refused_with_a_reason(text: str, complaint: str) -> None:
    with pytest.raises(AddressError) as refusal:
        TcpAddress.parse(text)
    assert complaint in str(refusal.value)


@pytest.mark.parametrize("text", ["192.0.2.1:80", "tcp6@[::1]:80", "[::]:0"])
def test_an_address_of_any_family_is_read_by_its_prefix(text: str) -> None:
    address = Address.parse(text)
    assert address == TcpAddress.parse(text)
    assert isinstance(address, TcpAddress)


@pytest.mark.parametrize("text", ["sockpair@3", "fd@3"])
def test_an_address_of_an_unknown_family_is_refused_with_all_that_are_known(text: str) -> None:
    with pytest.raises(AddressError, match=r"@ addresses are not supported, but .*mptcp@ .*tcp@ .*udp@"):
        Address.parse(text)


def test_a_mapped_address_is_the_ipv4_address_in_it() -> None:
    mapped = TcpAddress.of("::ffff:192.0.2.1", 80)
    assert mapped.is_ipv4_mapped
    assert mapped.unmapped() == TcpAddress.of("192.0.2.1", 80)
    assert TcpAddress.of("2001:db8::1", 80).unmapped() == TcpAddress.of("2001:db8::1", 80)
    assert (mapped.header_bytes, TcpAddress.of("::1", 80).header_bytes) == (40, 60)


def test_the_wildcard_of_an_address_keeps_version_and_port() -> None:
    assert str(TcpAddress.of("192.0.2.1", 80).wildcard()) == "0.0.0.0:80"
    assert str(TcpAddress.of("::1", 80).wildcard()) == "[::]:80"
    assert TcpAddress.of("::1", 80).wildcard().is_wildcard


def test_a_port_of_thousands_of_digits_is_an_address_error_like_any_other() -> None:
    with pytest.raises(AddressError):
        TcpAddress.parse("127.0.0.1:" + "9" * 5000)


def test_an_address_error_is_also_a_value_error_and_one_of_ours() -> None:
    with pytest.raises(ValueError, match="out of range") as refusal:
        TcpAddress.of("127.0.0.1", 70000)
    assert isinstance(refusal.value, MultibinderError)


def test_an_address_can_be_a_key_and_cannot_change() -> None:
    address = TcpAddress.parse("192.0.2.1:80")
    assert {address: 1}[TcpAddress.of("192.0.2.1", 80)] == 1
    with pytest.raises(AttributeError):
        address.port = 81  # type: ignore[misc]


def test_the_family_follows_from_the_host() -> None:
    assert TcpAddress.of("192.0.2.1", 80).family == socket.AF_INET
    assert TcpAddress.of("::1", 80).family == socket.AF_INET6


def test_port_0_stands_for_any_port_of_the_same_host() -> None:
    wanted = TcpAddress.parse("127.0.0.1:0")
    assert wanted.matches(TcpAddress.parse("127.0.0.1:4711"))
    assert not wanted.matches(TcpAddress.parse("127.0.0.2:4711"))
    assert not wanted.with_port(80).matches(TcpAddress.parse("127.0.0.1:4711"))


def test_the_address_of_a_socket_is_read_from_the_kernel() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert address_of(sock) == TcpAddress.of("127.0.0.1", sock.getsockname()[1])


def test_the_address_of_an_ipv6_socket_is_read_from_the_kernel() -> None:
    require_ipv6()
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        assert address_of(sock) == TcpAddress.of("::1", sock.getsockname()[1])


@pytest.mark.parametrize(("family", "kind"), [(socket.AF_NETLINK, socket.SOCK_DGRAM)])
def test_a_socket_of_no_kind_has_no_address(family: socket.AddressFamily, kind: socket.SocketKind) -> None:
    with socket.socket(family, kind) as sock:
        assert address_of(sock) is None


def test_the_endpoint_of_an_address_is_calculated_once_for_all_patterns_of_a_policy() -> None:
    endpoint = TcpAddress.parse("[2001:db8::1]:443").ip_endpoint
    assert (endpoint.version, endpoint.number, endpoint.port) == (6, 0x20010DB8_00000000_00000000_00000001, 443)
    assert TcpAddress.parse("[2001:db8::1]:443").ip_endpoint is endpoint


@pytest.mark.parametrize(
    ("text", "printed", "kind"),
    [
        ("mptcp@192.0.2.1:80", "mptcp@192.0.2.1:80", "mptcp"),
        ("mptcp6@[2001:db8:0::1]:80", "mptcp@[2001:db8::1]:80", "mptcp"),
        ("udp@192.0.2.1:53", "udp@192.0.2.1:53", "udp"),
        ("udp4@192.0.2.1:53", "udp@192.0.2.1:53", "udp"),
        ("udp6@[::]:53", "udp@[::]:53", "udp"),
        ("quic@192.0.2.1:443", "quic4@192.0.2.1:443", "udp"),
        ("quic4@192.0.2.1:443", "quic4@192.0.2.1:443", "udp"),
        ("quic6@[::]:443", "quic6@[::]:443", "udp"),
    ],
)
def test_an_address_with_a_prefix_is_printed_in_one_way(text: str, printed: str, kind: str) -> None:
    address = Address.parse(text)
    assert str(address) == printed
    assert Address.parse(printed) == address
    assert address.kind == kind
    assert address.wire_fields() == {"endpoint": printed}
    assert address.ip_endpoint == Address.parse(text.partition("@")[2]).ip_endpoint
    assert address.any_port().matches(address)
    assert str(address.wildcard()).rpartition(":")[2] == printed.rpartition(":")[2]


def test_addresses_of_different_protocols_are_different() -> None:
    texts = [f"{prefix}192.0.2.1:80" for prefix in ("", "mptcp@", "udp@", "quic4@")]
    addresses = [Address.parse(text) for text in texts]
    assert len({*addresses}) == len(texts)
    for one, other in itertools.permutations(addresses, 2):
        assert one != other
        assert not one.matches(other)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("udp4@[::1]:53", "::1 is not an IPv4 address"),
        ("quic6@192.0.2.1:443", "192.0.2.1 is not an IPv6 address"),
        ("udp@192.0.2.1:70000", "port 70000 is out of range: a UDP port is a number from 0 to 65535"),
        ("mptcp@192.0.2.1", "has no port: write host:port"),
        ("mptcp@localhost:80", "host 'localhost' is a name"),
    ],
)
def test_text_with_a_prefix_that_is_no_address_is_refused_with_a_reason(text: str, complaint: str) -> None:
    with pytest.raises(AddressError) as refusal:
        Address.parse(text)
    assert complaint in str(refusal.value)
