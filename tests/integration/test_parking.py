"""A listener that the binder has released wakes none of its holders any more, and refuses clients."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import Address, Options
from multibinder.binder.owner import Owner
from multibinder.binder.recorded_sockets import RecordedSockets
from multibinder.binder.records import Record
from multibinder.kernel.parking import is_parked
from multibinder.kernel.socket_options import cookie_of, inode_of
from multibinder.wire.kinds.tcp import TCP
from multibinder.wire.messages import ListenerSpec
from tests.support import can_connect, descriptors_unchanged, require_ipv6, without_privileges
from tests.support.namespaces import in_new_namespaces
from tests.support.stores import new_store
from tests.support.waiting import PATIENCE_S

#: linux/sched.h.
_CLONE_NEWNET = 0x40000000
HOSTS = ["127.0.0.1", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]"]


def listening(address: str = "127.0.0.1:0") -> socket.socket:
    sock = TCP.open(Address.parse(address), Options())
    TCP.make_ready(sock, 5)
    return sock


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listening() as sock:
        yield sock


def target(name: tuple[str, int]) -> tuple[str, int]:
    """Return an address that reaches a listener with this name."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name[0], name[0]), name[1]


def events(sock: socket.socket) -> list[tuple[int, int]]:
    """Return what an event loop that waits for clients is told within a moment."""
    epoll = select.epoll()
    with epoll:
        epoll.register(sock, select.EPOLLIN | select.EPOLLRDHUP)
        return epoll.poll(0.02)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_no_holder_of_a_released_listener_is_woken_any_more(host: str, blocking: bool) -> None:
    if ":" in host:
        require_ipv6()
    with listening(f"{host}:0") as sock, sock.dup() as copy:
        copy.setblocking(blocking)
        name = sock.getsockname()[:2]
        assert can_connect(target(name))
        with descriptors_unchanged():
            TCP.retire(sock)
        assert events(copy) == []
        sock.close()
        assert events(copy) == []
        assert not can_connect(target(name))
        assert os.get_blocking(copy.fileno()) == blocking
        for refused in (copy.accept, copy.listen):
            with pytest.raises(OSError, match="Invalid argument"):
                refused()


def test_clients_that_wait_are_reset_and_a_thread_in_accept_is_told(listener: socket.socket) -> None:
    with listener.dup() as copy:
        told: list[int | None] = []

        def accept() -> None:
            try:
                while True:
                    copy.accept()[0].close()
            except OSError as error:
                told.append(error.errno)

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        assert can_connect(listener.getsockname())  # so that the thread waits for the next one
        TCP.retire(listener)
        acceptor.join(PATIENCE_S)
        assert told == [errno.EINVAL]


def test_a_second_release_changes_nothing(listener: socket.socket) -> None:
    TCP.retire(listener)
    name = listener.getsockname()
    TCP.retire(listener)
    assert events(listener) == []
    assert (is_parked(listener), listener.getsockname()) == (True, name)


def test_a_listener_that_a_holder_had_shut_down_is_released_like_any_other(listener: socket.socket) -> None:
    listener.shutdown(socket.SHUT_RDWR)
    assert events(listener)
    TCP.retire(listener)
    assert events(listener) == []


@pytest.mark.parametrize("host", HOSTS)
def test_the_address_can_be_bound_again_at_once(host: str) -> None:
    if ":" in host:
        require_ipv6()
    with listening(f"{host}:0") as first:
        # The kernel takes back a port that it chose, when nobody listens any more.
        address = TCP.address_of(first)
    with listening(str(address)) as sock, sock.dup():
        TCP.retire(sock)
        with listening(str(address)) as again:
            assert can_connect(target(again.getsockname()[:2]))
            again.settimeout(PATIENCE_S)
            again.accept()[0].close()
        sock.close()


def test_a_plain_server_can_bind_the_address_when_the_holders_have_closed_it() -> None:
    with listening() as first:
        address = TCP.address_of(first)
    with listening(str(address)) as sock:
        TCP.retire(sock)
    with socket.socket() as plain:  # no SO_REUSEADDR: a connection in TIME_WAIT, say, would keep the port
        plain.bind(address.sockaddr)
        plain.listen()


def test_without_a_descriptor_clients_are_refused_all_the_same(listener: socket.socket) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        TCP.retire(listener)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not is_parked(listener)
    assert not can_connect(listener.getsockname())


@in_new_namespaces
def test_without_a_loopback_interface_clients_are_refused_all_the_same() -> None:
    subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
    for address in ("0.0.0.0:7999", "[::]:7999"):
        with listening(address) as sock:
            TCP.retire(sock)
            assert not TCP.is_ready(sock)
            assert not is_parked(sock)


@in_new_namespaces
def test_a_listener_of_another_network_namespace_never_connects_to_a_server_there() -> None:
    with listening("127.0.0.1:7999") as sock, socket.socket() as server:
        server.bind(("127.109.98.115", 7900))
        server.listen()
        server.setblocking(False)
        assert ctypes.CDLL(None).unshare(_CLONE_NEWNET) == 0
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        # The kernel can choose one port only, which the server has in the other namespace.
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("7900 7900")
        TCP.retire(sock)
        assert not TCP.is_ready(sock)
        assert not is_parked(sock)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_binder_needs_no_privilege_for_it() -> None:
    program = (
        "from multibinder import Address, Options; from multibinder.wire.kinds.tcp import TCP; "
        "s = TCP.open(Address.parse('127.0.0.1:0'), Options()); s.listen(); TCP.retire(s); print(TCP.is_retired(s))"
    )
    command = [*without_privileges(), sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.stdout == "True\n", done.stderr


def test_a_parked_socket_that_turns_up_again_is_closed() -> None:
    """The binder was killed after the release, before its keeper had forgotten the socket."""
    store = new_store()
    with listening("0.0.0.0:0") as holder:
        address, cookie, inode = TCP.address_of(holder), cookie_of(holder), inode_of(holder)
        TCP.retire(holder)
        released = Record(str(address), cookie, inode, {str(Owner("web", 0)): 1}, released=True)
        assert RecordedSockets({cookie: released}, {}).of(holder) is released
        for record in (released, None):
            store.restore(holder.dup(), record)
        assert len(store) == 0
        assert is_parked(holder)
        assert events(holder) == []


def test_a_release_beside_overlapping_listeners_leaves_them_their_clients(host: str) -> None:
    store = new_store()
    me = Owner("", os.geteuid())
    try:
        wide = ListenerSpec(Address.parse("0.0.0.0:0"))
        [wildcard] = store.bind([wide], [me])
        port = wildcard.listener.address.sockaddr[1]
        narrow = ListenerSpec(Address.parse(f"{host}:{port}"))
        [specific] = store.bind([narrow], [me])
        wide = ListenerSpec(wildcard.listener.address)
        with wildcard.listener.socket.dup() as one, specific.listener.socket.dup() as two:
            for released, copy, again in ((wide, one, wide), (narrow, two, narrow)):
                store.release(released, me)
                assert events(copy) == []
                store.bind([again], [me])
            assert can_connect((host, port))
            assert can_connect(("127.0.0.1", port))
    finally:
        store.close()
