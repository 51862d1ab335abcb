"""Multipath TCP: a listener of TCP, but for its protocol."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from multibinder import Address, Options, TcpAddress
from multibinder.kernel.socket_options import inode_of
from multibinder.wire import kinds
from multibinder.wire.addresses import MptcpAddress
from multibinder.wire.kinds.mptcp import MPTCP
from multibinder.wire.kinds.tcp import TCP
from tests.support import PATIENCE_S, can_connect, require, wait_until

LOCAL = MptcpAddress.of("127.0.0.1", 0)


def opened(address: Address = LOCAL) -> socket.socket:
    try:
        return MPTCP.open(address, Options())
    except OSError as error:
        require("mptcp", error.errno not in (errno.EPROTONOSUPPORT, errno.ENOPROTOOPT), "this kernel has no MPTCP")
        raise


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with opened() as sock:
        MPTCP.make_ready(sock, 5)
        yield sock


def test_a_socket_is_told_from_one_of_tcp(sock: socket.socket) -> None:
    assert kinds.of_socket(sock) is MPTCP
    assert kinds.address_of(sock) == LOCAL.with_port(sock.getsockname()[1])
    with TCP.open(TcpAddress.of("127.0.0.1", 0), Options()) as plain:
        assert kinds.of_socket(plain) is TCP


def test_clients_with_and_without_multipath_wait_in_its_queue(sock: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP) as multipath:
        multipath.connect(sock.getsockname())
        with socket.create_connection(sock.getsockname(), PATIENCE_S):
            wait_until(lambda: MPTCP.queue(sock) == (True, 2, 5), "both wait")


def test_a_socket_that_was_shut_down_is_repaired(sock: socket.socket) -> None:
    address = MPTCP.address_of(sock)
    sock.shutdown(socket.SHUT_RDWR)
    assert not MPTCP.is_ready(sock)
    assert MPTCP.repair(sock, address, Options(backlog=6)) == (6, None)
    assert MPTCP.address_of(sock) == address
    assert can_connect(sock.getsockname())


def test_a_retired_socket_refuses_clients_and_wakes_no_holder(sock: socket.socket) -> None:
    name = sock.getsockname()
    with sock.dup() as held:
        MPTCP.retire(sock)
        assert MPTCP.is_retired(held)
        assert not can_connect(name)


def test_it_takes_the_port_of_tcp(sock: socket.socket) -> None:
    address = MPTCP.address_of(sock)
    tcp = TcpAddress.of("127.0.0.1", sock.getsockname()[1])
    assert MPTCP.effective_addresses(address, None) == (tcp,)
    with pytest.raises(OSError, match="in use"):
        TCP.open(tcp, Options())
    assert MPTCP.colliding_inodes(address) == TCP.colliding_inodes(tcp) == {inode_of(sock)}


def test_a_specific_address_is_beside_a_wildcard_one_of_tcp() -> None:
    with opened(), TCP.open(TcpAddress.of("0.0.0.0", 0), Options()) as wide:
        TCP.make_ready(wide, 5)
        narrow_address = MptcpAddress.of("127.0.0.1", wide.getsockname()[1])
        assert MPTCP.can_be_beside(narrow_address, None, TCP.address_of(wide), None)
        with MPTCP.open(narrow_address, Options(), [wide]) as narrow:
            MPTCP.make_ready(narrow, 5, [wide])
            with socket.create_connection(narrow.getsockname(), PATIENCE_S):
                assert MPTCP.queue(narrow).length == 1
                assert TCP.queue(wide).length == 0


def test_a_kernel_without_it_is_explained() -> None:
    remedy = MPTCP.explain_refusal(LOCAL.with_port(80), errno.EPROTONOSUPPORT, None)
    assert remedy is not None
    assert "net.mptcp.enabled=1" in remedy
    assert "or bind 127.0.0.1:80, which every client reaches" in remedy
    assert "CAP_NET_BIND_SERVICE" in (MPTCP.explain_refusal(LOCAL.with_port(80), errno.EACCES, None) or "")
