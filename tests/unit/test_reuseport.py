"""A group of sockets on one address: its connections move, or new ones are steered away."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from multibinder.kernel import bpf, port_sharing, reuseport
from multibinder.kernel.accept_queue import accept_queue
from multibinder.kernel.parking import park
from multibinder.kernel.socket_options import is_shared, set_shared
from tests.support import clean_environment
from tests.support.namespaces import in_new_network
from tests.support.requirements import require

CLIENTS = 60


class Group:
    """Four sockets that listen on one port of loopback, and their clients."""

    def __init__(self, size: int = 4, kind: int = socket.SOCK_STREAM) -> None:
        self.stack = ExitStack()
        self.sockets: list[socket.socket] = []
        self.kind = kind
        for _ in range(size):
            self.sockets.append(self.new(self.port if self.sockets else 0))

    @property
    def port(self) -> int:
        return int(self.sockets[0].getsockname()[1])

    def new(self, port: int) -> socket.socket:
        sock = self.stack.enter_context(socket.socket(type=self.kind))
        set_shared(sock, True)
        sock.bind(("127.0.0.1", port))
        if self.kind == socket.SOCK_STREAM:
            sock.listen(CLIENTS * 4)
        return sock

    def connect(self, count: int = CLIENTS) -> list[socket.socket]:
        return [
            self.stack.enter_context(socket.create_connection(("127.0.0.1", self.port), timeout=5))
            for _ in range(count)
        ]

    def waiting(self) -> list[int]:
        return [accept_queue(sock).length for sock in self.sockets]


@pytest.fixture
def group() -> Iterator[Group]:
    made = Group()
    with made.stack:
        yield made


@pytest.fixture
def program() -> Iterator[int]:
    try:
        descriptor = bpf.load_migrating_program()
    except PermissionError:
        require("root", False, "loading a BPF program needs CAP_BPF")
    yield descriptor
    os.close(descriptor)


def test_with_the_program_no_connection_is_lost_when_members_stop(group: Group, program: int) -> None:
    reuseport.attach_migration(group.sockets[0], program)
    group.connect()
    for retired in group.sockets[:0:-1]:
        retired.shutdown(socket.SHUT_RDWR)
        assert park(retired)
    assert group.waiting() == [CLIENTS, 0, 0, 0]


def test_without_the_program_the_queue_of_a_member_that_stops_is_lost(group: Group) -> None:
    group.connect()
    lost = group.waiting()[3]
    group.sockets[3].shutdown(socket.SHUT_RDWR)
    assert sum(group.waiting()[:3]) == CLIENTS - lost < CLIENTS


def test_with_the_setting_no_connection_is_lost_and_it_is_read_where_the_socket_is() -> None:
    def moves() -> bool:
        group = Group()
        with group.stack:
            group.connect()
            for retired in group.sockets[:0:-1]:
                retired.shutdown(socket.SHUT_RDWR)
            assert group.waiting()[0] == CLIENTS
        return True

    assert in_new_network(moves, tcp_migrate_req="1")
    for value in "01":
        with in_new_network(socket.socket, tcp_migrate_req=value) as elsewhere:
            assert reuseport.migrates_by_setting(elsewhere) == (value == "1")


@pytest.mark.parametrize("numbers", [[0], [0, 1], [0, 2, 3], [3, 1]])
def test_new_connections_are_steered_to_some_members_until_that_is_taken_away(group: Group, numbers: list[int]) -> None:
    reuseport.steer(group.sockets[3], numbers)
    group.connect()
    assert [bool(length) for length in group.waiting()] == [number in numbers for number in range(4)]
    reuseport.remove_program(group.sockets[3])
    reuseport.remove_program(group.sockets[3])  # without a program
    group.connect()
    assert all(group.waiting())


def test_the_last_member_takes_the_number_of_one_that_leaves(group: Group) -> None:
    group.sockets[1].shutdown(socket.SHUT_RDWR)
    group.sockets[1].listen(CLIENTS)
    reuseport.steer(group.sockets[0], [0, 1])
    group.connect()
    assert [bool(length) for length in group.waiting()] == [True, False, False, True]


def test_datagrams_are_steered_too() -> None:
    group = Group(3, socket.SOCK_DGRAM)
    with group.stack:
        reuseport.steer(group.sockets[0], [0])
        for _ in range(CLIENTS):
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                client.sendto(b"x", group.sockets[0].getsockname())
        group.sockets[1].setblocking(False)
        with pytest.raises(BlockingIOError):
            group.sockets[1].recv(1)
        assert group.sockets[0].recv(1, socket.MSG_DONTWAIT) == b"x"


def test_a_socket_that_listened_alone_becomes_a_member_and_is_alone_again() -> None:
    with socket.socket() as alone, socket.socket() as second:
        alone.bind(("127.0.0.1", 0))
        alone.listen(CLIENTS * 2)
        set_shared(alone, True)
        set_shared(second, True)
        second.bind(alone.getsockname())
        second.listen(CLIENTS * 2)
        with ExitStack() as stack:
            for _ in range(CLIENTS):
                stack.enter_context(socket.create_connection(alone.getsockname(), timeout=5))
            assert accept_queue(alone).length
            assert accept_queue(second).length
        second.close()
        set_shared(alone, False)
        assert not is_shared(alone)
        with socket.create_connection(alone.getsockname(), timeout=5):
            pass


def test_without_the_right_loading_fails_with_eperm_and_leaves_no_descriptor() -> None:
    require("root", os.geteuid() == 0, "only root can take the right away")
    code = (
        "import os; from multibinder.kernel import bpf; before = os.listdir('/proc/self/fd'); os.setuid(65534)\n"
        "try: bpf.load_migrating_program()\n"
        "except PermissionError: print('refused', before == os.listdir('/proc/self/fd'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "refused True\n", done.stderr


def test_no_other_process_joins_sockets_that_share_a_port_for_good_or_did() -> None:
    require("root", os.geteuid() == 0, "giving sockets to another uid needs CAP_CHOWN")
    with socket.socket() as first, socket.socket() as second:
        for sock in (first, second):
            port_sharing.share(sock)
            sock.bind(first.getsockname() if sock is second else ("127.0.0.1", 0))
            sock.listen()
        for shared in (True, False):
            assert is_shared(first) == shared
            with socket.socket() as foreign:
                set_shared(foreign, True)
                with pytest.raises(OSError, match="in use"):
                    foreign.bind(first.getsockname())
            second.close()
            port_sharing.stop_sharing(first, first.getsockname()[1])
