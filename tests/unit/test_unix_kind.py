"""Unix sockets: their files are created safely, known again, given back and removed."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder.kernel import socket_file, unix_diag
from multibinder.wire.addresses import AbstractAddress, Address, UnixAddress
from multibinder.wire.errors import AddressError
from multibinder.wire.kinds import OptionError
from multibinder.wire.kinds.unix import UNIX
from multibinder.wire.options import Options
from tests.support import descriptors_unchanged

TYPES = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)


@pytest.fixture(params=TYPES, ids=lambda sort: socket.SocketKind(sort).name)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> UnixAddress:
    return UnixAddress.of(f"{tmp_path}/app.sock", request.param)


@pytest.fixture(params=[False, True], ids=["sock_diag", "without-netlink"])
def without_netlink(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Let the test run twice: the second time as in a unit that forbids AF_NETLINK."""
    if request.param:

        def refuse(sock: socket.socket) -> None:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

        monkeypatch.setattr(socket_file, "look_at", refuse)
        monkeypatch.setattr("multibinder.wire.kinds.unix.look_at", refuse)
    return bool(request.param)


@pytest.fixture
def listener(address: UnixAddress) -> Iterator[socket.socket]:
    with UNIX.open(address, Options()) as sock:
        UNIX.make_ready(sock, 5 if UNIX.accepts(address) else None)
        yield sock


def client_of(address: UnixAddress | AbstractAddress) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, address.type)
    try:
        client.connect(address.sockaddr)
    except OSError:
        client.close()
        raise
    return client


def refused(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, match=os.strerror(number))


def can_reach(address: UnixAddress) -> bool:
    try:
        with client_of(address) as client:
            if not UNIX.accepts(address):
                client.send(b"")  # connect(2) does not look at shutdown(2)
    except OSError:
        return False
    return True


def names(address: UnixAddress) -> list[str]:
    return sorted(os.listdir(os.path.dirname(address.path)))


def test_a_socket_is_reachable_with_its_mode_and_owner(address: UnixAddress) -> None:
    with descriptors_unchanged(), UNIX.open(address, Options(mode=0o620, group=os.getegid())) as sock:
        assert stat.S_IMODE(os.stat(address.path).st_mode) == 0o620
        UNIX.make_ready(sock, 5 if UNIX.accepts(address) else None)
        assert UNIX.address_of(sock) == address
        assert UNIX.is_reachable(sock, address)
        assert can_reach(address)


def test_the_default_mode_lets_only_the_owner_connect(listener: socket.socket, address: UnixAddress) -> None:
    assert stat.S_IMODE(os.stat(address.path).st_mode) == 0o600


def test_nobody_connects_before_mode_and_owner_are_set(address: UnixAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(*_: object) -> None:
        seen.append(stat.S_IMODE(os.stat(address.path).st_mode))

    monkeypatch.setattr(UNIX.__class__, "_set_owner_and_mode", look)
    UNIX.open(address, Options(mode=0o666)).close()
    assert seen == [0]


def test_a_stale_socket_is_replaced(address: UnixAddress, without_netlink: bool) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(address.path)
    with UNIX.open(address, Options()) as sock:
        UNIX.make_ready(sock, 1 if UNIX.accepts(address) else None)
        assert can_reach(address)
    assert names(address) == [".app.sock.multibinder", "app.sock"]


@pytest.mark.parametrize("sort", TYPES)
@pytest.mark.parametrize("listens", [True, False])
def test_a_live_socket_of_somebody_else_is_left_alone_and_does_not_notice(
    address: UnixAddress, sort: int, listens: bool
) -> None:
    with socket.socket(socket.AF_UNIX, sort) as other, descriptors_unchanged():
        other.bind(address.path)
        if listens and sort != socket.SOCK_DGRAM:
            other.listen(1)
        with refused(errno.EADDRINUSE):
            UNIX.open(address, Options())
        assert socket_file.is_at(other, address.path)
        if listens and sort != socket.SOCK_DGRAM:
            assert unix_diag.look_at(other).queue == 0
    assert names(address) == ["app.sock"]


@pytest.mark.parametrize("target", ["missing", "file", "stale"])
def test_a_link_at_the_path_is_refused_and_nothing_is_made_where_it_points(
    address: UnixAddress, tmp_path: Path, target: str
) -> None:
    place = tmp_path / "elsewhere"
    if target == "file":
        place.write_text("precious")
    if target == "stale":
        with socket.socket(socket.AF_UNIX) as old:
            old.bind(str(place))
    os.symlink(place, address.path)
    with refused(errno.ELOOP):
        UNIX.open(address, Options())
    assert os.path.islink(address.path)
    assert place.exists() == (target != "missing")


def test_a_file_of_another_kind_is_refused_and_left_as_it_is(address: UnixAddress) -> None:
    Path(address.path).write_text("precious")
    with refused(errno.ENOTSOCK):
        UNIX.open(address, Options())
    assert "is a file of another kind" in str(UNIX.explain_refusal(address, errno.ENOTSOCK, ""))
    assert Path(address.path).read_text() == "precious"


def test_a_bind_that_fails_leaves_nothing(address: UnixAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chown", refuse)
    with descriptors_unchanged(), pytest.raises(OptionError) as refusal:
        UNIX.open(address, Options(user=12345))
    assert (refusal.value.option, refusal.value.errno) == ("user", errno.EPERM)
    assert "CAP_CHOWN (drop-in unix-paths.conf)" in refusal.value.remedy
    assert names(address) == []


def test_a_socket_that_never_became_ready_leaves_nothing(address: UnixAddress) -> None:
    UNIX.discard(UNIX.open(address, Options()), address)
    assert names(address) == []


@pytest.mark.parametrize("how", ["unlink", "rename", "replaced-by-stale"])
def test_a_removed_path_leads_to_the_same_socket_again_with_its_clients(
    listener: socket.socket, address: UnixAddress, how: str, without_netlink: bool
) -> None:
    with client_of(address) as waiting:
        waiting.send(b"hello")
        if how == "rename":
            os.rename(address.path, f"{address.path}.old")
        else:
            os.unlink(address.path)
        if how == "replaced-by-stale":
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(address.path)
        assert UNIX.is_ready(listener)
        assert not UNIX.is_reachable(listener, address)
        assert UNIX.repair(listener, address, Options()).replacement is None
        assert UNIX.is_reachable(listener, address)
        assert can_reach(address)
        source = listener.accept()[0] if UNIX.accepts(address) else listener
        assert source.recv(10) == b"hello"
        source.close()


def test_a_path_can_be_given_back_again_and_again(listener: socket.socket, address: UnixAddress) -> None:
    for _ in range(3):
        os.unlink(address.path)
        assert UNIX.repair(listener, address, Options()).replacement is None


def test_a_path_that_another_process_took_is_not_taken_back(listener: socket.socket, address: UnixAddress) -> None:
    os.unlink(address.path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(address.path)
        with refused(errno.EADDRINUSE):
            UNIX.repair(listener, address, Options())
        assert socket_file.is_at(other, address.path)


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_RDWR])
def test_a_socket_that_a_holder_shut_down_is_replaced_with_its_options(
    listener: socket.socket, address: UnixAddress, how: int
) -> None:
    with listener.dup() as holder:
        holder.shutdown(how)
    assert not UNIX.is_ready(listener)
    assert not UNIX.queue(listener).ready
    assert not can_reach(address)
    replacement = UNIX.repair(listener, address, Options(mode=0o640)).replacement
    assert replacement is not None
    with replacement:
        assert UNIX.is_reachable(replacement, address)
        assert can_reach(address)
        assert stat.S_IMODE(os.stat(address.path).st_mode) == 0o640


def test_a_directory_that_was_removed_and_made_again_gets_a_new_socket(
    listener: socket.socket, address: UnixAddress, tmp_path: Path
) -> None:
    for each in names(address):
        os.unlink(tmp_path / each)
    tmp_path.rmdir()
    with refused(errno.ENOENT):
        UNIX.repair(listener, address, Options())
    tmp_path.mkdir()
    replacement = UNIX.repair(listener, address, Options()).replacement
    assert replacement is not None
    with replacement:
        assert can_reach(address)


def test_a_datagram_socket_that_a_holder_connected_receives_from_everybody_again(tmp_path: Path) -> None:
    address = UnixAddress.of(f"{tmp_path}/log", socket.SOCK_DGRAM)
    with UNIX.open(address, Options()) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as friend:
        friend.bind(f"{tmp_path}/friend")
        listener.connect(f"{tmp_path}/friend")
        assert not UNIX.is_ready(listener)
        assert not can_reach(address)
        assert UNIX.repair(listener, address, Options()).replacement is None
        assert can_reach(address)


def test_a_retired_socket_has_no_name_any_more_and_refuses_clients(
    listener: socket.socket, address: UnixAddress
) -> None:
    with listener.dup() as copy, client_of(address) as client:
        UNIX.retire(copy)
        assert names(address) == []
        assert not UNIX.is_ready(listener)
        with pytest.raises(OSError, match=r"Broken pipe|reset by peer|not permitted"):
            client.sendall(b"x")
        UNIX.retire(listener)  # a second time is no error


def test_the_end_of_a_socket_removes_no_file_of_another_one(listener: socket.socket, address: UnixAddress) -> None:
    os.unlink(address.path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(address.path)
        UNIX.retire(listener)
        assert socket_file.is_at(other, address.path)
    assert names(address) == ["app.sock"]


def test_a_drain_lets_nobody_in_and_can_be_taken_back(listener: socket.socket, address: UnixAddress) -> None:
    with client_of(address):
        UNIX.turn_away(listener)
        assert not can_reach(address)
        assert UNIX.queue(listener).ready
        UNIX.let_in(listener)
        assert can_reach(address)
        UNIX.turn_away(listener)
        UNIX.retire(listener)
        assert names(address) == []


def test_mode_and_group_of_a_live_socket_change_and_go_back(listener: socket.socket, address: UnixAddress) -> None:
    UNIX.set_option(listener, "mode", 0o606)
    assert stat.S_IMODE(os.stat(address.path).st_mode) == 0o606
    UNIX.set_option(listener, "mode", None)
    assert stat.S_IMODE(os.stat(address.path).st_mode) == 0o600
    if os.geteuid() == 0:
        UNIX.set_option(listener, "user", 12)
        UNIX.set_option(listener, "group", 13)
        assert (os.stat(address.path).st_uid, os.stat(address.path).st_gid) == (12, 13)
        UNIX.set_option(listener, "user", None)
        UNIX.set_option(listener, "group", None)
    assert (os.stat(address.path).st_uid, os.stat(address.path).st_gid) == (os.geteuid(), os.getegid())


def test_options_of_a_file_that_is_another_one_now_are_refused(listener: socket.socket, address: UnixAddress) -> None:
    os.rename(address.path, f"{address.path}.old")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(address.path)
        before = os.stat(address.path).st_mode
        with pytest.raises(OptionError):
            UNIX.set_option(listener, "mode", 0o601)
        assert os.stat(address.path).st_mode == before


def test_buffer_sizes_read_back_doubled(listener: socket.socket) -> None:
    default = listener.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    UNIX.set_option(listener, "sndbuf", 20000)
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 40000
    UNIX.set_option(listener, "sndbuf", None)
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == default


def test_the_queue_counts_the_clients_that_wait(listener: socket.socket, address: UnixAddress) -> None:
    assert UNIX.queue(listener).length == 0
    with client_of(address) as client:
        client.send(b"x")
        assert UNIX.queue(listener).length == 1
        if UNIX.accepts(address):
            assert UNIX.queue(listener).limit == 5


def test_a_socket_that_was_renamed_after_bind_is_known_by_its_path(tmp_path: Path) -> None:
    path = f"{tmp_path}/app.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{path}.4711.tmp")
        os.rename(f"{path}.4711.tmp", path)
        assert UNIX.address_of(sock) == UnixAddress.of(path)
        os.rename(path, f"{path}.bak")
        assert UNIX.is_bound_to(sock, UnixAddress.of(f"{path}.bak"))
        assert not UNIX.is_bound_to(sock, UnixAddress.of(f"{path}.bak", socket.SOCK_DGRAM))
        assert not UNIX.is_bound_to(sock, UnixAddress.of(path))


@pytest.mark.parametrize("prefix", ["abns@", "abnsz@"])
def test_an_abstract_name_listens_and_is_found_by_who_wants_it(prefix: str) -> None:
    address = Address.parse(f"{prefix}mb-{os.getpid()}")
    assert isinstance(address, AbstractAddress)
    with UNIX.open(address, Options()) as listener:
        assert UNIX.make_ready(listener, 5) == 5
        assert UNIX.colliding_inodes(address) == {os.fstat(listener.fileno()).st_ino}
        assert UNIX.colliding_inodes(address) <= UNIX.ready_inodes()
        assert UNIX.is_reachable(listener, address)
        with refused(errno.EADDRINUSE):
            UNIX.open(address, Options())
        listener.shutdown(socket.SHUT_RDWR)
        with refused(errno.ESHUTDOWN):
            UNIX.repair(listener, address, Options())
        assert "end its holders" in str(UNIX.explain_refusal(address, errno.ESHUTDOWN, ""))


def test_options_that_a_unix_socket_has_not_are_refused() -> None:
    with pytest.raises(AddressError, match="an abstract name has no mode"):
        UNIX.check(AbstractAddress.of("x"), Options(mode=0o600))
    with pytest.raises(AddressError, match="a datagram socket has no backlog"):
        UNIX.check(UnixAddress.of("/run/x", socket.SOCK_DGRAM), Options(backlog=5))
    with pytest.raises(AddressError, match="of the kind unix has no option mss"):
        UNIX.check(UnixAddress.of("/run/x"), Options(mss=500))
