"""UDP sockets, what their holders can do to them, and how that is undone."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import Address, Options
from multibinder.kernel import silence as silencing
from multibinder.kernel.disconnect import disconnect
from multibinder.kernel.port_sharing import share
from multibinder.kernel.socket_options import inode_of
from multibinder.wire import kinds
from multibinder.wire.addresses import QuicAddress, UdpAddress
from multibinder.wire.kinds.udp import UDP
from tests.support import descriptors_unchanged, require, require_ipv6, wait_until

NO_OPTIONS = Options()
#: Each with a port that the kernel chooses.
HOSTS = ["udp@127.0.0.1:0", "udp@0.0.0.0:0", "udp@[::1]:0", "udp@[::]:0"]


@contextlib.contextmanager
def opened(text: str = HOSTS[0], options: Options = NO_OPTIONS) -> Iterator[socket.socket]:
    address = Address.parse(text)
    if address.family == socket.AF_INET6:
        require_ipv6()
    with UDP.open(address, options) as sock:
        yield sock


@contextlib.contextmanager
def with_own_port(text: str) -> Iterator[socket.socket]:
    """Yield a socket whose port was asked for: the kernel treats it differently from one that it has chosen."""
    with opened(text) as chosen:
        address = UDP.address_of(chosen)
    with opened(str(address)) as sock:
        yield sock


def arrives(sock: socket.socket, text: bytes = b"ping", sender: socket.socket | None = None) -> bool:
    """Return whether a datagram for the address of ``sock`` arrives at ``sock``."""
    return reaches(sock.getsockname(), sock, text, sender)


def reaches(name: tuple[str, int], sock: socket.socket, text: bytes = b"ping", by: socket.socket | None = None) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name[0], name[0])
    with by.dup() if by else socket.socket(sock.family, socket.SOCK_DGRAM) as sender:
        sender.sendto(text, (host, name[1]))
    try:
        # On loopback a datagram is in the queue when sendto(2) returns.
        return sock.recv(100, socket.MSG_DONTWAIT) == text
    except BlockingIOError:
        return False


def shut_down(sock: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    with pytest.raises(OSError, match="not connected"):  # and yet it has an effect
        sock.shutdown(how)


def somewhere() -> tuple[str, int]:
    return "127.0.0.1", 9


def test_a_socket_receives_from_the_moment_it_is_bound() -> None:
    with opened() as sock:
        assert kinds.of_socket(sock) is UDP
        assert UDP.is_ready(sock)
        assert arrives(sock)
        assert not UDP.accepts(UDP.address_of(sock))
        assert UDP.ready_inodes() >= {inode_of(sock)}


def test_the_queue_is_memory_and_drops_are_counted() -> None:
    with opened(options=Options(rcvbuf=20_000)) as sock, socket.socket(type=socket.SOCK_DGRAM) as sender:
        assert UDP.make_ready(sock, None) == 40_000
        assert UDP.queue(sock) == (True, 0, 40_000)
        for _ in range(100):
            sender.sendto(bytes(64), sock.getsockname())
        waiting, dropped = UDP.queue(sock), UDP.drops(sock)
        received = 0
        with contextlib.suppress(BlockingIOError):
            while sock.recv(100, socket.MSG_DONTWAIT):
                received += 1
        assert received + dropped == 100
        assert dropped > 0
        assert 40_000 - 2000 < waiting.length <= 40_000 + 2000


def test_the_default_buffer_holds_some_hundred_small_datagrams_and_rcvbuf_more() -> None:
    """docs/reference/kinds.md has these figures for a Linux with its own defaults."""
    default = int(Path("/proc/sys/net/core/rmem_default").read_text())
    held = {}
    for rcvbuf in (None, default * 2):
        with opened(options=Options(rcvbuf=rcvbuf)) as sock, socket.socket(type=socket.SOCK_DGRAM) as sender:
            for held[rcvbuf] in itertools.count():
                sender.sendto(bytes(64), sock.getsockname())
                if UDP.drops(sock):
                    break
    assert held[None] >= default // 1000
    assert held[default * 2] > 3 * held[None]


def test_a_plain_socket_lets_nobody_bind_the_port_too_and_one_for_quic_does() -> None:
    for text, is_alone in (("udp@127.0.0.1:0", True), ("quic@127.0.0.1:0", False)):
        with opened(text) as sock, socket.socket(type=socket.SOCK_DGRAM) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            assert other.connect_ex(somewhere()) == 0
            with pytest.raises(OSError, match="in use") if is_alone else contextlib.nullcontext():
                fresh(other).bind(sock.getsockname())
            assert (UDP.caution(UDP.address_of(sock)) is None) == is_alone


def fresh(sock: socket.socket) -> socket.socket:
    """Return the socket without the port that connect(2) gave it."""
    disconnect(sock)
    return sock


def test_a_socket_for_quic_is_recognized_and_takes_the_address_of_udp() -> None:
    with opened("quic@127.0.0.1:0") as sock:
        address = UDP.address_of(sock)
        assert isinstance(address, QuicAddress)
        assert Address.parse("quic@127.0.0.1:0").matches(address)
        assert UDP.effective_addresses(address, None) == (UdpAddress(address.host, address.port),)
        assert str(address) == f"quic4@127.0.0.1:{address.port}"
        with pytest.raises(OSError, match="in use"):
            UDP.open(UdpAddress(address.host, address.port), Options())
        with pytest.raises(OSError, match="in use"):
            UDP.open(address, Options())


def test_the_connections_of_an_older_server_of_quic_are_not_in_the_way() -> None:
    with opened("quic@127.0.0.1:0") as sock, socket.socket(type=socket.SOCK_DGRAM) as connection:
        name = sock.getsockname()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind(name)
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.bind(("127.0.0.1", 0))
            connection.connect(client.getsockname())
            sock.close()
            with UDP.open(Address.parse(f"quic@{name[0]}:{name[1]}"), Options()) as again:
                assert arrives(again)
                client.sendto(b"of the old one", name)
                assert connection.recv(100, socket.MSG_DONTWAIT) == b"of the old one"


def test_an_address_in_use_leaves_no_descriptor_and_names_its_holder() -> None:
    with opened() as sock:
        address = UDP.address_of(sock)
        with descriptors_unchanged(), pytest.raises(OSError, match="in use") as refusal:
            UDP.open(address, Options())
        assert refusal.value.errno == errno.EADDRINUSE
        assert UDP.colliding_inodes(address) == {inode_of(sock)}
        assert UDP.colliding_addresses(address) == {inode_of(sock): address}
        assert UDP.ss_command(address, "p") == f"ss -lunp 'sport = :{sock.getsockname()[1]}'"
        assert "ss -lunp" in (UDP.explain_refusal(address, errno.EADDRINUSE, "") or "")


def test_a_specific_address_is_beside_a_wildcard_one_and_gets_its_own_datagrams() -> None:
    with opened("udp@0.0.0.0:0") as wide:
        narrow_address = UdpAddress.of("127.0.0.1", wide.getsockname()[1])
        assert UDP.can_be_beside(narrow_address, None, UDP.address_of(wide), None)
        with UDP.open(narrow_address, Options(), [wide]) as narrow:
            assert reaches(narrow.getsockname(), narrow)
            assert reaches(("127.0.0.2", wide.getsockname()[1]), wide)
            for sock in (wide, narrow):
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
                assert os.fstat(sock.fileno()).st_uid == os.geteuid()


@pytest.mark.parametrize("text", HOSTS)
@pytest.mark.parametrize("open_it", [opened, with_own_port])
def test_a_socket_that_a_holder_has_connected_receives_from_everyone_again(text: str, open_it: type) -> None:
    with open_it(text) as sock, socket.socket(sock.family, socket.SOCK_DGRAM) as peer:
        address = UDP.address_of(sock)
        peer.bind(("::1" if sock.family == socket.AF_INET6 else "127.0.0.1", 0))
        with sock.dup() as held:
            held.connect(peer.getsockname())
        assert not UDP.is_ready(sock)
        assert not UDP.queue(sock).ready
        assert not arrives(sock)
        replacement = UDP.repair(sock, address, Options()).replacement
        assert (replacement is None) == (sock.family == socket.AF_INET)
        with replacement or sock.dup() as now:
            assert UDP.is_ready(now)
            assert UDP.address_of(now) == address
            assert arrives(now)


def test_a_holder_that_undoes_its_own_connect_loses_a_port_that_the_kernel_chose_and_it_is_bound_again() -> None:
    with opened() as sock:
        address = UDP.address_of(sock)
        sock.connect(somewhere())
        disconnect(sock)
        assert sock.getsockname()[1] == 0
        assert not UDP.is_ready(sock)
        UDP.repair(sock, address, Options())
        assert UDP.address_of(sock) == address
        assert arrives(sock)


def test_the_kernel_does_not_forget_the_peer_of_an_ipv6_socket() -> None:
    """Therefore it is replaced. When this fails, the kernel has learned it, and ``receive_from_all`` would do."""
    with with_own_port("udp@[::]:0") as bound:
        bound.connect(("::ffff:127.0.0.1", 9))
        disconnect(bound)
        assert not arrives(bound)


def test_a_repair_of_a_connected_socket_keeps_its_interface() -> None:
    with opened(options=Options(interface="lo")) as sock:
        address = UDP.address_of(sock)
        sock.connect(somewhere())
        UDP.repair(sock, address, Options(interface="lo"))
        assert UDP.actual_options(sock, Options()).interface == "lo"


@pytest.mark.parametrize("text", [*HOSTS, "quic@127.0.0.1:0"])
@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_RDWR])
@pytest.mark.parametrize("is_connected", [False, True])
def test_a_socket_that_a_holder_has_shut_down_is_replaced_on_its_address(
    text: str, how: int, is_connected: bool
) -> None:
    with opened(text) as sock:
        address = UDP.address_of(sock)
        if is_connected:
            sock.connect(("::1", 9) if sock.family == socket.AF_INET6 else somewhere())
            sock.shutdown(how)
        else:
            shut_down(sock, how)
        assert not UDP.is_ready(sock)
        UDP.require_repairable(sock, address, Options())
        repaired = UDP.repair(sock, address, Options())
        assert repaired.replacement is not None
        with repaired.replacement as new:
            assert repaired.limit == UDP.queue(new).limit
            assert UDP.is_ready(new)
            assert UDP.address_of(new) == address
            # What comes from now on comes to the new one, and not to the processes that have the old one.
            assert arrives(new)
            assert not reaches(new.getsockname(), sock)
            # Nobody can bind beside it.
            with socket.socket(sock.family, socket.SOCK_DGRAM) as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                with pytest.raises(OSError, match="in use"):
                    other.bind(new.getsockname())


def test_no_datagram_is_lost_while_a_socket_is_replaced() -> None:
    """They are in the queue of the old socket, or in that of the new one."""
    with opened(options=Options(rcvbuf=200_000)) as sock, socket.socket(type=socket.SOCK_DGRAM) as sender:
        address, name = UDP.address_of(sock), sock.getsockname()
        shut_down(sock)
        for number in range(50):
            sender.sendto(b"%d" % number, name)
        new = UDP.repair(sock, address, Options(rcvbuf=200_000)).replacement
        assert new is not None
        for number in range(50, 100):
            sender.sendto(b"%d" % number, name)
        with new:
            counts = []
            for each in (sock, new):
                with contextlib.suppress(BlockingIOError):
                    for count in itertools.count():
                        counts.append(count)
                        each.recv(100, socket.MSG_DONTWAIT)
            assert counts == [*range(51), *range(51)]


def test_a_shard_that_is_replaced_stays_a_shard() -> None:
    with opened() as sock:
        share(sock)
        with UDP.open(UDP.address_of(sock), Options(), [sock]) as other:
            share(other)
            shut_down(sock)
            new = UDP.repair(sock, UDP.address_of(sock), Options()).replacement
            assert new is not None
            with new:
                got = {new: 0, other: 0, sock: 0}
                for _ in range(200):
                    with socket.socket(type=socket.SOCK_DGRAM) as sender:
                        sender.sendto(b"x", new.getsockname())
                    for each in select.select([new, other], [], [], 1)[0]:
                        each.recv(100)
                        got[each] += 1
                assert got[new] > 20
                assert got[other] > 20
                assert got[new] + got[other] == 200


@pytest.mark.parametrize("text", HOSTS)
@pytest.mark.parametrize("open_it", [opened, with_own_port])
def test_no_holder_receives_from_a_retired_socket_or_is_woken_by_it(text: str, open_it: type) -> None:
    with open_it(text) as sock, sock.dup() as held:
        name = sock.getsockname()
        assert not UDP.is_retired(sock)
        UDP.retire(sock)
        assert UDP.is_retired(held)
        assert not UDP.is_ready(held)
        sock.close()
        poll = select.poll()
        poll.register(held, select.POLLIN | select.POLLRDHUP)
        assert not reaches(name, held)
        assert poll.poll(0) == []


@pytest.mark.parametrize("text", HOSTS)
def test_the_port_of_a_retired_socket_that_a_process_still_holds_can_be_bound(text: str) -> None:
    with with_own_port(text) as sock, sock.dup():
        address = UDP.address_of(sock)
        UDP.retire(sock)
        with UDP.open(address, Options()) as again:
            assert arrives(again)
            assert again.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
            assert again.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
            with pytest.raises(OSError, match="in use"):
                UDP.open(address, Options())
        with socket.socket(sock.family, socket.SOCK_DGRAM) as another_program:
            another_program.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            another_program.bind(address.sockaddr)


def test_a_shard_is_opened_while_a_process_still_holds_a_retired_one() -> None:
    with with_own_port(HOSTS[0]) as sock:
        share(sock)
        address = UDP.address_of(sock)
        with UDP.open(address, Options(), [sock]) as other:
            share(other)
            UDP.retire(sock)
            with UDP.open(address, Options(), [other]) as again:
                share(again)
                assert UDP.is_ready(again)
                with socket.socket(type=socket.SOCK_DGRAM) as stranger:
                    stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    with pytest.raises(OSError, match="in use"):
                        stranger.bind(address.sockaddr)


def test_the_holders_of_a_retired_socket_can_answer_what_waits() -> None:
    with opened() as sock, socket.socket(type=socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        client.sendto(b"question", sock.getsockname())
        assert UDP.turn_away(sock) == 0
        queue = UDP.queue(sock)
        assert queue.ready
        assert queue.length > 0
        text, sender = sock.recvfrom(100, socket.MSG_DONTWAIT)
        sock.sendto(text, sender)
        assert client.recv(100, socket.MSG_DONTWAIT) == b"question"
        assert UDP.queue(sock).length == 0
        client.sendto(b"another", sock.getsockname())
        assert UDP.queue(sock).length == 0


@pytest.mark.parametrize("text", HOSTS)
@pytest.mark.parametrize("open_it", [opened, with_own_port])
def test_a_socket_that_drained_lets_everyone_in_again(text: str, open_it: type) -> None:
    with open_it(text) as sock:
        address = UDP.address_of(sock)
        UDP.turn_away(sock)
        if sock.family == socket.AF_INET6:
            with pytest.raises(OSError, match="cannot undo connect"):
                UDP.let_in(sock)
            UDP.retire(sock)
            with UDP.open(address, Options()) as again:
                assert arrives(again)
            return
        UDP.let_in(sock)
        assert UDP.is_ready(sock)
        assert UDP.address_of(sock) == address
        assert arrives(sock)


def test_a_socket_that_is_bound_to_another_interface_is_silenced() -> None:
    require("root", os.geteuid() == 0, "SO_BINDTODEVICE may need CAP_NET_RAW")
    interfaces = [name for _, name in socket.if_nameindex() if name != "lo"]
    require("network", interfaces, "there is no other interface")
    with opened("udp@0.0.0.0:0", Options(interface=interfaces[0])) as sock:
        UDP.retire(sock)
        assert UDP.is_retired(sock)


def test_a_socket_that_can_be_connected_to_no_address_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silencing, "_IPV4_HOSTS", ())
    with opened() as sock, pytest.raises(OSError, match="no address to connect"):
        UDP.retire(sock)


def test_waiting_is_over_at_once_when_a_holder_shuts_a_socket_down() -> None:
    """The watch of the binder asks epoll for EPOLLRDHUP."""
    for how in (socket.SHUT_RD, socket.SHUT_RDWR):
        with opened() as sock, contextlib.closing(select.epoll()) as epoll:
            epoll.register(sock, select.EPOLLRDHUP | select.EPOLLET)
            assert epoll.poll(0) == []
            shut_down(sock, how)
            assert wait_until(lambda: epoll.poll(0), "epoll reports it")
