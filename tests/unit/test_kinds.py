"""A kind answers what differs between kinds of sockets. No other module asks what kind a socket is."""

from __future__ import annotations

import ast
import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import multibinder
from multibinder import Address, AddressError, Options, TcpAddress
from multibinder.kernel.socket_options import inode_of
from multibinder.wire import kinds
from multibinder.wire.kinds.tcp import TCP
from tests.support import PATIENCE_S, can_connect, descriptors_unchanged, require_ipv6, somaxconn

LOCAL = TcpAddress.of("127.0.0.1", 0)


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    """A bound socket that does not listen yet."""
    with TCP.open(LOCAL, Options()) as sock:
        yield sock


def test_every_kind_is_found_by_its_addresses_and_its_sockets(sock: socket.socket) -> None:
    assert kinds.of_address(LOCAL) is TCP
    assert kinds.of_socket(sock) is TCP
    assert kinds.address_of(sock) == LOCAL.with_port(sock.getsockname()[1])
    assert len({kind.name for kind in kinds.KINDS}) == len(kinds.KINDS)
    families = [family for family in Address.families() if family.__module__.startswith("multibinder.")]
    assert {family.kind for family in families} == {kind.name for kind in kinds.KINDS}


@pytest.mark.parametrize(("family", "sort"), [(socket.AF_NETLINK, socket.SOCK_DGRAM)])
def test_a_socket_of_an_unknown_kind_has_no_kind_and_no_address(
    family: socket.AddressFamily, sort: socket.SocketKind
) -> None:
    with socket.socket(family, sort) as other:
        assert kinds.of_socket(other) is None
        assert kinds.address_of(other) is None


def test_a_socket_becomes_ready_with_the_queue_that_was_asked_for(sock: socket.socket) -> None:
    assert not TCP.is_ready(sock)
    assert not TCP.queue(sock).ready
    assert TCP.make_ready(sock, 5) == 5
    assert TCP.is_ready(sock)
    with socket.create_connection(sock.getsockname(), PATIENCE_S):
        assert TCP.queue(sock) == (True, 1, 5)
    assert TCP.make_ready(sock, 7) == TCP.queue(sock).limit == 7
    assert TCP.drops(sock) == 0


def test_without_a_backlog_the_queue_is_all_that_the_kernel_allows(sock: socket.socket) -> None:
    assert TCP.make_ready(sock, None) == TCP.largest_queue() == somaxconn()


def test_a_retired_socket_refuses_clients_also_through_another_copy(sock: socket.socket) -> None:
    TCP.make_ready(sock, 5)
    with sock.dup() as copy:
        TCP.retire(copy)
        assert not TCP.is_ready(sock)
        assert not can_connect(sock.getsockname())
        TCP.retire(sock)  # a second time is no error


def test_a_socket_that_was_shut_down_is_repaired_with_the_port_that_the_kernel_chose(sock: socket.socket) -> None:
    TCP.make_ready(sock, 5)
    address = TCP.address_of(sock)
    sock.shutdown(socket.SHUT_RDWR)
    assert TCP.repair(sock, address, Options(backlog=6)).limit == 6
    assert TCP.address_of(sock) == address
    assert can_connect(address.sockaddr)


def test_a_repair_fails_when_another_socket_has_the_port() -> None:
    with TCP.open(LOCAL, Options()) as sock:
        TCP.make_ready(sock, 5)
        address = TCP.address_of(sock)
        sock.shutdown(socket.SHUT_RDWR)
        with socket.socket() as other:
            other.bind(address.sockaddr)
            other.listen()
            with pytest.raises(OSError, match="in use"):
                TCP.repair(sock, address, Options(backlog=5))


def test_an_address_in_use_leaves_no_descriptor_and_names_its_holder(sock: socket.socket) -> None:
    TCP.make_ready(sock, 5)
    address = TCP.address_of(sock)
    with descriptors_unchanged(), pytest.raises(OSError, match="in use") as refusal:
        TCP.open(address, Options())
    assert refusal.value.errno == errno.EADDRINUSE
    # Listeners of other programs may have the same port on other addresses.
    assert TCP.colliding_inodes(address) == {inode_of(sock)} <= TCP.colliding_inodes(address.wildcard())


def test_nothing_collides_with_a_socket_that_does_not_listen(sock: socket.socket) -> None:
    assert TCP.colliding_inodes(TCP.address_of(sock)) == frozenset()


@pytest.mark.parametrize(
    ("number", "holders", "remedy"),
    [
        (
            errno.EADDRINUSE,
            "nginx (pid 8)",
            ", by nginx (pid 8); take it over with 'multibinder adopt 127.0.0.1:0', stop it, or choose another port",
        ),
        (errno.EADDRINUSE, "nginx (pid 8) on [::]:80", ", by nginx (pid 8) on [::]:80; stop it or choose another port"),
        (errno.EADDRINUSE, "", "; find who has it ('ss -ltnp', as root) or choose another port"),
        (errno.EACCES, "", "needs CAP_NET_BIND_SERVICE"),
        (errno.EADDRNOTAVAIL, "", ": no interface of this host has 127.0.0.1;"),
    ],
)
def test_a_refusal_comes_with_its_remedy(number: int, holders: str, remedy: str) -> None:
    assert remedy in (TCP.explain_refusal(LOCAL, number, holders) or "")


def test_a_kind_does_not_explain_a_refusal_with_another_cause() -> None:
    assert TCP.explain_refusal(LOCAL, errno.EMFILE, "") is None


@pytest.mark.parametrize(
    ("address", "v6only", "takes"),
    [
        ("192.0.2.1:80", None, ["192.0.2.1:80"]),
        ("0.0.0.0:80", None, ["0.0.0.0:80"]),
        ("[::]:80", None, ["[::]:80", "0.0.0.0:80"]),
        ("[::]:80", False, ["[::]:80", "0.0.0.0:80"]),
        ("[::]:80", True, ["[::]:80"]),
        ("[::1]:80", None, ["[::1]:80"]),
        ("[::ffff:192.0.2.1]:80", None, ["192.0.2.1:80"]),
    ],
)
def test_the_effective_addresses_of_a_listener_are_all_that_it_takes(
    address: str, v6only: bool | None, takes: list[str]
) -> None:
    assert [str(each) for each in TCP.effective_addresses(Address.parse(address), v6only)] == takes


def test_v6only_is_for_ipv6_alone() -> None:
    TCP.check(TcpAddress.of("::1", 80), Options(v6only=True))
    TCP.check(LOCAL, Options(backlog=5))
    with pytest.raises(AddressError, match="v6only has a meaning for IPv6 addresses only"):
        TCP.check(LOCAL, Options(v6only=False))


@pytest.mark.parametrize("v6only", [True, False])
def test_options_that_are_fixed_at_bind_are_read_from_the_socket(v6only: bool) -> None:
    require_ipv6()
    with TCP.open(TcpAddress.of("::", 0), Options(v6only=v6only)) as sock:
        assert TCP.actual_options(sock, Options(9, None, "web")) == Options(9, v6only, "web")


def test_ipv4_has_no_v6only(sock: socket.socket) -> None:
    assert TCP.actual_options(sock, Options(9, None, "web")) == Options(9, None, "web")


def test_the_ss_command_filters_by_port() -> None:
    assert TCP.ss_command(LOCAL.with_port(80), "p") == "ss -ltnp 'sport = :80'"


def test_a_client_in_the_accept_queue_waits_while_the_socket_is_made_ready_again(sock: socket.socket) -> None:
    TCP.make_ready(sock, 5)
    with socket.create_connection(sock.getsockname(), PATIENCE_S) as client:
        TCP.make_ready(sock, 9)
        with sock.accept()[0] as accepted:
            accepted.sendall(b"here")
        assert client.recv(4) == b"here"


def asks_for_the_kind(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in ("TCP_INFO", "IPV6_V6ONLY"):
            yield f"{path.name}:{node.lineno}: {node.attr}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            of = ast.unparse(node.args[1])
            if of.endswith("Address") and of != "Address":  # the base of all asks for none of them
                yield f"{path.name}:{node.lineno}: isinstance(…, {of})"


def test_no_other_module_asks_what_kind_a_socket_is() -> None:
    package = Path(multibinder.__file__).parent
    own = (package / "wire" / "kinds", package / "wire" / "addresses", package / "kernel")
    others = [path for path in package.rglob("*.py") if not any(path.is_relative_to(each) for each in own)]
    assert [found for path in others for found in asks_for_the_kind(path)] == []
