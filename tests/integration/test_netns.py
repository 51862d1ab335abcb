"""A listener in another network namespace is made there, served from here, and outlives the namespace's processes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multibinder import Address, BindError, Client, ListenerSpec, TcpAddress
from multibinder.kernel import netns
from multibinder.kernel.namespaces import in_network_namespace_of
from multibinder.kernel.parking import is_parked
from multibinder.kernel.socket_options import netns_cookie_of
from multibinder.wire.shared_listener import SharedListener
from tests.conftest import StartBinder
from tests.support import PATIENCE_S, PROGRAM, Binder, Stranger, require, wait_until, without_privileges
from tests.support.namespaces import NetworkNamespace

HOST, PORT = "127.0.0.1", 8000
NOT_ALLOWED = 10003


@pytest.fixture
def blue() -> Iterator[NetworkNamespace]:
    with NetworkNamespace("blue") as made:
        yield made


def spec(netns: str, port: int = PORT, host: str = HOST) -> ListenerSpec:
    return ListenerSpec(TcpAddress(host, port), netns=netns)


def inside(namespace: NetworkNamespace, action: Callable[[], socket.socket]) -> socket.socket:
    """Call ``action`` in the namespace."""
    descriptor = netns.open_netns(namespace.path)
    try:
        return netns.inside(descriptor, action)
    finally:
        os.close(descriptor)


def connect(namespace: NetworkNamespace) -> socket.socket:
    return inside(namespace, lambda: socket.create_connection((HOST, PORT), PATIENCE_S))


def assert_served(listener: SharedListener, connected: socket.socket) -> None:
    """Assert that this process accepts the client that has connected."""
    listener.settimeout(PATIENCE_S)
    with listener.accept()[0] as accepted, connected:
        accepted.sendall(b"from outside")
        connected.settimeout(PATIENCE_S)
        assert connected.recv(100) == b"from outside"


@pytest.mark.parametrize("how", ["name", "path", "pid"])
def test_a_listener_in_another_namespace_is_served_from_here(binder: Binder, blue: NetworkNamespace, how: str) -> None:
    named = {"name": blue.name, "path": blue.path, "pid": str(blue.pid)}[how]
    with Client(binder.socket_path) as client:
        [listener] = client.bind([spec(named)], owner="here")
        with listener:
            assert netns_cookie_of(listener) == inside(blue, netns.own_cookie)  # type: ignore[arg-type]
            assert_served(listener, connect(blue))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, PORT), 1)


def test_equal_addresses_in_two_namespaces_are_two_listeners(binder: Binder, blue: NetworkNamespace) -> None:
    with NetworkNamespace("green") as green, Client(binder.socket_path) as client:
        specs = [spec(blue.name), spec(green.name)]
        first, second = client.bind(specs, owner="here")
        again = client.bind(specs, owner="here")
        with first, second, again[0], again[1]:
            cookies = [netns_cookie_of(each) for each in (first, second, *again)]
            assert cookies[:2] == cookies[2:]
            assert cookies[0] != cookies[1]
            # A name belongs to the namespace that has it now.
            client.release([spec(blue.name)], owner="here")
            with pytest.raises(ConnectionRefusedError):
                connect(blue)
            assert_served(second, connect(green))
        client.release([spec(f"cookie:{cookies[1]}")], owner="here")
        assert client.list() == []


def test_our_own_namespace_is_the_same_by_whatever_name(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        own = f"cookie:{netns.own_cookie()}"
        ways = ["", "/proc/self/ns/net", str(os.getpid()), own]
        with client.bind([spec("", 0, host)], owner="here")[0] as first:
            port = first.getsockname()[1]
        for sock in client.bind([spec(way, port, host) for way in ways], owner="here"):
            sock.close()
        assert len(client.list()) == 1


@pytest.mark.parametrize("fate", ["upgrade", "guard", "recovery"])
def test_a_listener_serves_on_when_its_namespace_has_no_process_and_no_name_and_the_binder_is_replaced(
    run_dir: Path, blue: NetworkNamespace, fate: str
) -> None:
    with contextlib.ExitStack() as stack:
        binder = stack.enter_context(Binder(run_dir, *(["--guard"] if fate == "guard" else []))).wait_until_ready()
        with Client(binder.socket_path) as client:
            listener = stack.enter_context(client.bind([spec(str(blue.pid))], owner="here")[0])
            way_in = netns.open_netns(blue.path)
            stack.callback(os.close, way_in)
            blue.end_process()
            blue.remove_name()
            assert blue.name not in netns.names()
            before = client.list()
            if fate == "upgrade":
                client.upgrade()
            else:
                os.kill(client.hello().pid, signal.SIGKILL)
        if fate == "recovery":
            assert binder.wait() == -signal.SIGKILL
            command = [*PROGRAM, "serve", "--socket", str(binder.socket_path)]
            stack.enter_context(Binder(run_dir, name="next", command=command)).wait_until_ready()
        with Client(binder.socket_path, wait=PATIENCE_S) as client:
            assert [(each.address, each.cookie, each.claims) for each in client.list()] == [
                (each.address, each.cookie, each.claims) for each in before
            ]
            assert_served(listener, netns.inside(way_in, lambda: socket.create_connection((HOST, PORT), PATIENCE_S)))
            # Another process can have it by the cookie, and a holder cannot shut it down for ever.
            cookie = netns_cookie_of(listener)
            with client.bind([spec(f"cookie:{cookie}")], owner="here")[0] as again:
                again.shutdown(socket.SHUT_RDWR)
                wait_until(lambda: can_connect(way_in), "it is repaired", log=binder.log)
            # New ones can be bound there as well.
            with client.bind([spec(f"cookie:{cookie}", PORT + 1)], owner="here")[0] as other:
                assert netns_cookie_of(other) == cookie
            client.release([spec(f"cookie:{cookie}"), spec(f"cookie:{cookie}", PORT + 1)], owner="here")
            assert not can_connect(way_in)


def can_connect(way_in: int) -> bool:
    try:
        netns.inside(way_in, lambda: socket.create_connection((HOST, PORT), PATIENCE_S)).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_container_s_process_gets_the_listener_of_the_host(binder: Binder, blue: NetworkNamespace, host: str) -> None:
    """And the host's clients are served from the namespace."""
    with Client(binder.socket_path) as client:
        listener = in_network_namespace_of(blue.pid, lambda: client.bind([spec("", 0, host)], owner="inside")[0])
    with listener:
        assert_served(listener, socket.create_connection(listener.getsockname(), PATIENCE_S))


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("mb-nothing", "there is no /run/netns/mb-nothing"),
        ("/proc/self/ns/mnt", "is not a network namespace"),
        ("/dev/null", "is not a network namespace"),
        ("4194305", "there is no /proc/4194305/ns/net"),
        ("cookie:123456789", "no listener and no name"),
    ],
)
def test_what_is_no_namespace_is_refused_with_what_it_is(binder: Binder, named: str, says: str) -> None:
    with Client(binder.socket_path) as client, pytest.raises(BindError, match=says):
        client.bind([spec(named)])


def test_a_fifo_in_place_of_a_namespace_makes_nobody_wait(binder: Binder, run_dir: Path) -> None:
    os.mkfifo(run_dir / "fifo")
    with Client(binder.socket_path) as client, pytest.raises(BindError, match="is not a network namespace"):
        client.bind([spec(str(run_dir / "fifo"))])


def test_a_binder_without_the_right_names_the_drop_in(start_binder: StartBinder, blue: NetworkNamespace) -> None:
    binder = start_binder(prefix=without_privileges())
    with Client(binder.socket_path) as client:
        for named, needed in ((blue.name, "CAP_SYS_ADMIN"), (str(blue.pid), "CAP_SYS_PTRACE")):
            with pytest.raises(BindError, match=needed) as caught:
                client.bind([spec(named)])
            assert "netns.conf" in str(caught.value)
        assert client.list() == []


def test_the_process_that_has_an_address_in_a_namespace_is_named(binder: Binder, blue: NetworkNamespace) -> None:
    with (
        inside(blue, lambda: socket.create_server((HOST, PORT))),
        Client(binder.socket_path) as client,
        pytest.raises(BindError, match=rf"\(pid {os.getpid()}\)"),
    ):
        client.bind([spec(blue.name)])


def test_without_a_policy_only_root_may_name_a_namespace(
    start_binder: StartBinder, run_dir: Path, blue: NetworkNamespace
) -> None:
    run_dir.chmod(0o711)
    binder = start_binder("--mode", "0666")
    for who in ({"uid": 4242}, {"uid": 0, "contained": True}):
        with Stranger(path=binder.socket_path, **who) as stranger:  # type: ignore[arg-type]
            for method in ("bind", "check", "release"):
                refused = stranger.ask(method, {"address": HOST, "port": PORT, "netns": blue.name})
                assert refused.reply["error"]["code"] == NOT_ALLOWED
                assert "only root and the binder's own user" in refused.refusal


def test_a_rule_grants_a_namespace_by_what_it_is(
    start_binder: StartBinder, run_dir: Path, blue: NetworkNamespace
) -> None:
    run_dir.chmod(0o711)
    (run_dir / "policy.toml").write_text(f"""
[[rule]]
uid = 4242
allow = "bind"
address = "*:*"

[[rule]]
uid = [4242, "@guest"]
allow = ["bind", "list", "release"]
netns = "{blue.name}"
address = "*:{PORT}"
""")
    (run_dir / "policy.toml").chmod(0o600)
    binder = start_binder("--mode", "0666", "--policy", str(run_dir / "policy.toml"))
    with NetworkNamespace("green") as green, Stranger(4242, binder.socket_path) as stranger:

        def ask(method: str, named: str, port: int = PORT) -> str:
            told = stranger.ask(method, {"address": HOST, "port": port, "netns": named})
            return told.refusal if "error" in told.reply else ""

        for named in (blue.name, str(blue.pid)):
            assert ask("bind", named) == ""
            assert "Not allowed" in ask("bind", named, PORT + 1)
        # A path is opened only if a rule has this very path.
        for named in (green.name, str(green.pid), green.path, blue.path):
            assert "Not allowed" in ask("bind", named)
        [listed] = stranger.ask("list").reply["result"]
        assert listed["address"] == f"{HOST}:{PORT}"
        with Stranger(0, binder.socket_path, contained=True) as guest:
            element = {"address": HOST, "port": PORT, "netns": blue.name}
            assert guest.ask("bind", element).received
            refused = guest.ask("bind", element | {"netns": str(blue.pid)})
            assert "another PID namespace" in refused.refusal
        assert ask("release", blue.name) == ""
        # When the namespace has lost its name, its listeners are no longer granted.
        with Client(binder.socket_path) as root:
            [held] = root.bind([spec(blue.name)], owner="root")
            held.close()
        blue.remove_name()
        assert stranger.ask("list").reply["result"] == []


def test_no_descriptor_of_a_namespace_is_kept(binder: Binder, blue: NetworkNamespace) -> None:
    require("root", os.geteuid() == 0, "needs root")
    with Client(binder.socket_path) as client:
        client.bind([spec(blue.name)], owner="here")[0].close()
        assert [each for each in binder.descriptors().values() if each.startswith(("net:", "/run/netns"))] == []


def test_abstract_names_and_datagrams_of_another_namespace_are_served_and_repaired(
    binder: Binder, blue: NetworkNamespace
) -> None:
    abstract, udp = Address.parse("abns@mb-netns"), Address.parse(f"udp@{HOST}:{PORT}")
    specs = [ListenerSpec(each, netns=blue.name) for each in (abstract, udp)]

    def reach(address: Address) -> socket.socket:
        def connected() -> socket.socket:
            sock = socket.socket(address.family, socket.SOCK_STREAM if address == abstract else socket.SOCK_DGRAM)
            sock.settimeout(PATIENCE_S)
            try:
                sock.connect(address.sockaddr)
            except BaseException:
                sock.close()
                raise
            return sock

        return inside(blue, connected)

    def is_served(names: SharedListener, datagrams: SharedListener) -> bool:
        try:
            with reach(abstract), reach(udp) as sender:
                sender.send(b"hello")
                names.settimeout(1)
                names.accept()[0].close()
                datagrams.settimeout(1)
                return bool(datagrams.recvfrom(100)[0])
        except (OSError, TimeoutError):
            return False

    with Client(binder.socket_path) as client, contextlib.ExitStack() as stack:
        names, datagrams = (stack.enter_context(each) for each in client.bind(specs, owner="here"))
        assert is_served(names, datagrams)
        # After a holder's shutdown both have new sockets, in the same namespace.
        names.shutdown(socket.SHUT_RDWR)

        def again() -> bool:
            with contextlib.ExitStack() as received:
                new = [received.enter_context(each) for each in client.bind(specs, owner="here")]
                assert len({netns_cookie_of(each) for each in (*new, names)}) == 1
                return is_served(new[0], new[1])

        wait_until(again, "they are served again", log=binder.log)
        assert {each.netns_name for each in client.list()} == {blue.name}
        assert {each.netns_name for each in client.status().listeners} == {blue.name}
        client.release(specs, owner="here")
        assert client.list() == []
    with pytest.raises(ConnectionRefusedError):
        reach(abstract)


def test_a_holder_of_a_released_listener_of_another_namespace_is_not_woken_for_ever(
    binder: Binder, blue: NetworkNamespace
) -> None:
    with Client(binder.socket_path) as client, client.bind([spec(blue.name)], owner="here")[0] as listener:
        client.release([spec(blue.name)], owner="here")
        assert is_parked(listener)
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        assert poll.poll(0) == []
