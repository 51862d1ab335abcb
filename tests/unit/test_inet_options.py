"""Every option of a socket of IPv4 or IPv6 is what was asked for, as getsockopt(2) tells, and can be taken off."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from multibinder import Address, AddressError, Options
from multibinder.wire import kinds
from multibinder.wire.kinds import Kind, OptionError
from tests.support import descriptors_unchanged, require, require_ipv6
from tests.support.capabilities import without_capabilities
from tests.support.kernel_options import VALUES, expected, shown

PRIVILEGED = ("transparent", "mark")
ADDRESSES = [
    "127.0.0.1:0",
    "[::1]:0",
    "mptcp@127.0.0.1:0",
    "mptcp@[::1]:0",
    "udp@127.0.0.1:0",
    "udp@[::1]:0",
    "quic@127.0.0.1:0",
]
#: IPV6_TCLASS is not known to Multipath TCP.
UNKNOWN = {("mptcp@[::1]:0", "tos")}
CASES = [
    (text, option)
    for text in ADDRESSES
    for option in VALUES
    if (text, option) not in UNKNOWN
    for kind in [kinds.of_address(Address.parse(text))]
    if option in kind.fixed_options | kind.live_options
]

LIVE = [(text, option) for text, option in CASES if option in kinds.of_address(Address.parse(text)).live_options]


@contextlib.contextmanager
def opened(text: str, options: Options) -> Iterator[tuple[Kind, Address, socket.socket]]:
    address = Address.parse(text)
    if address.family == socket.AF_INET6:
        require_ipv6()
    kind = kinds.of_address(address)
    try:
        sock = kind.open(address, options)
    except OSError as error:
        require("mptcp", error.errno not in (errno.EPROTONOSUPPORT, errno.ENOPROTOOPT), "this kernel has no MPTCP")
        raise
    with sock:
        kind.make_ready(sock, None)
        yield kind, kind.address_of(sock), sock


def needs_rights(option: str) -> None:
    require("root", option not in PRIVILEGED or os.geteuid() == 0, f"{option} needs root")


@pytest.mark.parametrize(("text", "option"), CASES)
def test_an_option_is_on_the_new_socket_and_is_read_back(text: str, option: str) -> None:
    needs_rights(option)
    with opened(text, Options(**{option: VALUES[option]})) as (kind, _, sock):
        assert shown(sock, option) == expected(option)
        assert kind.options_of(sock).given[option] == VALUES[option]


@pytest.mark.parametrize(("text", "option"), LIVE)
def test_an_option_of_a_live_socket_is_set_and_taken_off(text: str, option: str) -> None:
    needs_rights(option)
    with opened(text, Options()) as (kind, _, sock):
        new = shown(sock, option), sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        kind.set_option(sock, option, VALUES[option])
        assert shown(sock, option) == expected(option)
        kind.set_option(sock, option, None)
        assert (shown(sock, option), sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) == new
        assert option not in kind.options_of(sock).given


@pytest.mark.parametrize("text", ADDRESSES)
def test_all_options_are_still_there_after_a_repair(text: str) -> None:
    needs_rights("mark")
    given = {option: VALUES[option] for case, option in CASES if case == text}
    with opened(text, Options(**given)) as (kind, address, sock):
        with contextlib.suppress(OSError):  # ENOTCONN of UDP
            sock.shutdown(socket.SHUT_RDWR)
        assert not kind.is_ready(sock)
        repaired = kind.repair(sock, address, Options(**given))
        with repaired.replacement or sock.dup() as now:
            assert kind.is_ready(now)
            assert kind.address_of(now) == address
            assert {option: shown(now, option) for option in given} == {option: expected(option) for option in given}


@pytest.mark.parametrize("option", ["rcvbuf", "sndbuf"])
def test_a_buffer_that_is_taken_off_is_adapted_by_the_kernel_again(option: str) -> None:
    so_buf_lock, bit = 72, 2 if option == "rcvbuf" else 1
    with opened("127.0.0.1:0", Options(rcvbuf=100_000, sndbuf=100_000)) as (kind, _, sock):
        kind.set_option(sock, option, None)
        assert sock.getsockopt(socket.SOL_SOCKET, so_buf_lock) == 3 & ~bit


def test_tos_holds_for_the_ipv4_clients_of_an_ipv6_socket_too() -> None:
    with opened("[::]:0", Options(tos=16, v6only=False)) as (kind, _, sock):
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 16
        kind.set_option(sock, "tos", None)
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0


def test_keepalive_stays_on_until_the_last_of_its_options_is_taken_off() -> None:
    with opened("127.0.0.1:0", Options(keepalive_idle=50, keepalive_count=4)) as (kind, _, sock):
        kind.set_option(sock, "keepalive_idle", None)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        kind.set_option(sock, "keepalive_count", None)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


def test_options_of_accepted_connections_are_those_of_the_listener() -> None:
    options = Options(mss=1200, keepalive_idle=50, tos=16, rcvbuf=100_000)
    with (
        opened("127.0.0.1:0", options) as (_, _, sock),
        socket.create_connection(sock.getsockname()),
        sock.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1200
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 200_000


def test_fixed_options_are_read_from_the_socket() -> None:
    with opened("udp@127.0.0.1:0", Options(interface="lo")) as (kind, _, sock):
        assert kind.actual_options(sock, Options(name="dns")) == Options(name="dns", interface="lo")
    with opened("udp@127.0.0.1:0", Options()) as (kind, _, sock):
        assert kind.actual_options(sock, Options(interface="lo")).interface is None
    with opened("mptcp@127.0.0.1:0", Options(rcvbuf=100_000)) as (kind, _, sock):
        assert kind.actual_options(sock, Options()).rcvbuf == 100_000


def unprivileged(text: str, options: Options) -> OptionError:
    with without_capabilities(), descriptors_unchanged(), pytest.raises(OptionError) as refusal, opened(text, options):
        pass
    return refusal.value


@pytest.mark.parametrize(
    ("option", "feature", "right"),
    [
        ("transparent", "IP_TRANSPARENT", "CAP_NET_ADMIN or CAP_NET_RAW"),
        ("mark", "SO_MARK", "CAP_NET_ADMIN or CAP_NET_RAW"),
    ],
)
@pytest.mark.parametrize("text", ["127.0.0.1:0", "mptcp@127.0.0.1:0", "udp@127.0.0.1:0"])
def test_an_option_without_its_capability_is_an_error_that_names_it(
    text: str, option: str, feature: str, right: str
) -> None:
    refusal = unprivileged(text, Options(**{option: VALUES[option]}))
    assert (refusal.option, refusal.errno) == (option, errno.EPERM)
    assert refusal.remedy == f": {feature} needs {right} in the binder (drop-in socket-options.conf)"


@pytest.mark.parametrize(("option", "setting"), [("rcvbuf", "rmem_max"), ("sndbuf", "wmem_max")])
def test_a_buffer_over_the_limit_of_the_kernel_is_an_error_and_not_a_smaller_buffer(option: str, setting: str) -> None:
    size = int(Path(f"/proc/sys/net/core/{setting}").read_text()) + 1
    refusal = unprivileged("udp@127.0.0.1:0", msgspec.structs.replace(Options(), **{option: size}))
    assert (refusal.option, refusal.errno) == (option, errno.EPERM)
    assert f"net.core.{setting} is {size - 1}; raise it ('sysctl -w net.core.{setting}={size}')" in refusal.remedy
    assert "give the binder CAP_NET_ADMIN (drop-in socket-options.conf)" in refusal.remedy
    with opened("udp@127.0.0.1:0", Options()) as (kind, _, sock):
        before = shown(sock, option)
        with without_capabilities(), pytest.raises(OptionError):
            kind.set_option(sock, option, size)
        assert shown(sock, option) == before


def test_root_gets_a_buffer_over_the_limit() -> None:
    require("root", os.geteuid() == 0, "CAP_NET_ADMIN is needed")
    size = int(Path("/proc/sys/net/core/rmem_max").read_text()) + 1
    with opened("udp@127.0.0.1:0", Options(rcvbuf=size)) as (_, _, sock):
        assert shown(sock, "rcvbuf") == 2 * size


@pytest.mark.parametrize(
    ("text", "options", "remedy"),
    [
        ("127.0.0.1:0", Options(interface="nosuch0"), ": no interface has the name nosuch0"),
        ("127.0.0.1:0", Options(mss=65000), ": TCP_MAXSEG is a number from 88 to 32767"),
        ("mptcp@[::1]:0", Options(tos=16), ": this kernel has no IPV6_TCLASS for such a socket"),
    ],
)
def test_an_option_that_the_kernel_refuses_is_an_error_with_a_remedy(text: str, options: Options, remedy: str) -> None:
    with descriptors_unchanged(), pytest.raises(OptionError) as refusal, opened(text, options):
        pass
    assert remedy in refusal.value.remedy
    assert [refusal.value.option] == list(options.given)


def test_an_option_that_a_kind_never_has_is_refused_before_the_socket_is_made() -> None:
    for text, options in (
        ("udp@127.0.0.1:0", Options(backlog=5)),
        ("udp@127.0.0.1:0", Options(mss=1200)),
        ("mptcp@127.0.0.1:0", Options(user_timeout=5)),
        ("vsock@*:0", Options(rcvbuf=5)),
        ("127.0.0.1:0", Options(mode=0o600)),
    ):
        address = Address.parse(text)
        [option] = options.given
        with pytest.raises(AddressError, match=f"has no option {option}, but"):
            kinds.of_address(address).check(address, options)


@pytest.mark.parametrize("text", ["127.0.0.1:0", "mptcp@127.0.0.1:0"])
def test_the_bits_of_ecn_are_no_part_of_tos(text: str) -> None:
    """The kernel would not set them for a stream (ip(7))."""
    address = Address.parse(text)
    with pytest.raises(AddressError, match="tos 17 has bits of ECN"):
        kinds.of_address(address).check(address, Options(tos=17))
