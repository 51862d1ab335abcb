"""The kernel's list of TCP sockets agrees with the sockets themselves."""

from __future__ import annotations

import contextlib
import os
import socket
import struct

import pytest

from multibinder.kernel.accept_queue import accept_queue
from multibinder.observe.sock_diag import ListeningSocket, listening_sockets, paths
from multibinder.wire.addresses import TcpAddress
from tests.support import require_ipv6

SO_COOKIE = 57


def cookie(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_listener_is_listed_as_itself(host: str) -> None:
    if ":" in host:
        require_ipv6()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        sock.listen(5)
        inode = os.fstat(sock.fileno()).st_ino
        [found] = [each for each in listening_sockets() if each.inode == inode]
        address = TcpAddress.of_name(sock.getsockname())
        assert found == ListeningSocket(address, inode, cookie(sock), os.geteuid(), 0, 0, 5, 0)
        with socket.create_connection(("::1" if ":" in host else "127.0.0.1", address.port)):
            [found] = [each for each in listening_sockets() if each.inode == inode]
            assert (found.queue, found.limit) == accept_queue(sock)[1:] == (1, 5)


def test_more_listeners_than_fit_in_one_message_are_all_listed(host: str) -> None:
    with contextlib.ExitStack() as stack:
        inodes = set()
        for _ in range(700):
            sock = stack.enter_context(socket.socket())
            sock.bind((host, 0))
            sock.listen()
            inodes.add(os.fstat(sock.fileno()).st_ino)
        assert inodes <= {each.inode for each in listening_sockets()}


def test_the_listed_path_of_a_connection_agrees_with_its_socket(host: str) -> None:
    with socket.create_server((host, 0)) as server, socket.create_connection(server.getsockname()):
        accepted, _ = server.accept()
        with accepted:
            info = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            options, mtu, announced = info[5], *struct.unpack_from("=I20xI", info, 60)
            local = TcpAddress.of_name(accepted.getsockname())
            found = [path for path in paths(100_000) if path.local == local]
            assert [(path.mtu, path.mss_announced) for path in found] == [(mtu, announced + 12 * (options & 1))]
            assert found[0].round_trip_us > 0
    assert len(paths(1)) <= 1
