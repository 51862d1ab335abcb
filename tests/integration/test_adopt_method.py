"""The method ``adopt``: the binder takes sockets from root alone, believes only the kernel, and takes all or none."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import multibinder
from multibinder import ListenerSpec, RequestError
from multibinder.cli.adopt import let_clients_move
from multibinder.kernel.netns import own_cookie
from multibinder.kernel.socket_options import cookie_of
from multibinder.wire import messages
from multibinder.wire.addresses import Address
from multibinder.wire.adoption import Offer
from tests.conftest import Meet, StartBinder
from tests.support import (
    PATIENCE_S,
    Binder,
    Json,
    RawClient,
    Stranger,
    request,
    require,
    wait_until,
    without_privileges,
)


@pytest.fixture(autouse=True)
def root() -> None:
    require("root", os.geteuid() == 0, "only root may hand sockets to a binder")


@pytest.fixture
def listening(host: str) -> Iterator[socket.socket]:
    """A listener that a program has opened by itself."""
    with socket.create_server((host, 0), backlog=7, reuse_port=True) as sock:
        yield sock


def element(sock: socket.socket, **more: object) -> Json:
    host, port = sock.getsockname()
    return {"address": host, "port": port, "owner": "web", **more}


@contextlib.contextmanager
def nothing_left(binder: Binder) -> Iterator[None]:
    """Wait, after the block, until the binder has as many descriptors as before."""
    before = len(binder.descriptors())
    yield
    wait_until(lambda: len(binder.descriptors()) == before, "the binder closes what it was sent", log=binder.log)


def spec_of(sock: socket.socket) -> ListenerSpec:
    host, port = sock.getsockname()
    return ListenerSpec(Address.parse(f"{host}:{port}"))


def refusal(path: Path, elements: Sequence[Json], descriptors: Sequence[int]) -> str:
    """Ask for the permission, send the descriptors, and return the sentence of the refusal."""
    text = request("adopt", *elements)
    with RawClient(path) as client:
        assert client.ask(text)["result"] == {"send": len(elements)}
        client.send(text, descriptors)
        message: str = client.reply()["error"]["message"]
    return message


def test_an_adopted_listener_is_the_same_socket_with_its_backlog_and_owner(
    binder: Binder, listening: socket.socket
) -> None:
    with multibinder.Client(binder.socket_path) as client:
        [adopted] = client.adopt([(spec_of(listening), listening)], owner="web")
        assert (adopted.outcome, adopted.backlog) == ("adopted", 7)
        [listed] = client.list()
        assert (listed.cookie, listed.owners, listed.backlog_requested) == (cookie_of(listening), ["web"], 7)
        listening.close()
        [sock] = client.bind([Address.parse(listed.address)], owner="web")
        with sock:
            assert cookie_of(sock) == listed.cookie
            assert [each.owners for each in client.list()] == [["web"]]


def test_the_options_of_an_adopted_listener_are_those_of_its_socket(
    start_binder: StartBinder, listening: socket.socket
) -> None:
    """They are in force until the owner binds without them, as if it had asked for them."""
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 3)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000)
    binder = start_binder()
    with multibinder.Client(binder.socket_path) as client:
        client.adopt([(spec_of(listening), listening)], owner="web")
        client.upgrade()
        [of_another] = client.bind([spec_of(listening)], owner="other")
        with of_another:
            assert of_another.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000
            assert of_another.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) == 3
        [sock] = client.bind([spec_of(listening)], owner="web")
        with sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) == 0


def test_what_is_adopted_is_not_shared_with_other_processes_any_more(binder: Binder, listening: socket.socket) -> None:
    with multibinder.Client(binder.socket_path) as client:
        client.adopt([(spec_of(listening), listening)])
    with pytest.raises(OSError, match="in use"):
        socket.create_server(listening.getsockname(), reuse_port=True)


def test_a_socket_that_the_binder_holds_already_is_said_to_be_held(binder: Binder, listening: socket.socket) -> None:
    with multibinder.Client(binder.socket_path) as client:
        assert client.adopt([(spec_of(listening), listening)])[0].outcome == "adopted"
        assert client.adopt([(spec_of(listening), listening)])[0].outcome == "held"
        assert len(client.list()) == 1


def test_an_adopted_listener_survives_the_death_of_the_binder_before_the_answer_is_read(
    start_binder: StartBinder, listening: socket.socket
) -> None:
    binder = start_binder("--guard")
    with multibinder.Client(binder.socket_path) as client:
        client.adopt([(spec_of(listening), listening)], owner="web")
        cookie, pid = cookie_of(listening), client.hello().pid
    listening.close()
    os.kill(pid, 9)

    def again() -> bool:
        with contextlib.suppress(multibinder.MultibinderError), multibinder.Client(binder.socket_path) as client:
            return client.hello().pid != pid and [(each.cookie, each.owners) for each in client.list()] == [
                (cookie, ["web"])
            ]
        return False

    wait_until(again, "the next binder has the adopted listener", log=binder.log)


def test_an_upgrade_between_permission_and_descriptors_takes_the_permission_back(
    binder: Binder, listening: socket.socket
) -> None:
    text = request("adopt", element(listening))
    with RawClient(binder.socket_path) as client, multibinder.Client(binder.socket_path) as other:
        assert client.ask(text)["result"] == {"send": 1}
        other.upgrade()
        assert other.hello().version
        with contextlib.suppress(PermissionError):  # since Linux 6.16
            client.send(text, [listening.fileno()])
            assert client.reply()["result"] == {"send": 1}
        assert client.ask(text)["result"] == {"send": 1}
        client.send(text, [listening.fileno()])
        assert client.reply()["result"]["listeners"][0]["outcome"] == "adopted"


def test_the_library_asks_again_after_such_an_upgrade(binder: Binder, listening: socket.socket) -> None:
    upgraded: list[str] = []

    def upgrade(uid: int) -> None:
        if not upgraded:
            with multibinder.Client(binder.socket_path) as other:
                upgraded.append(other.upgrade().after)
                other.hello()

    with multibinder.Client(binder.socket_path) as client:
        assert client.adopt([(spec_of(listening), listening)], before_sending=upgrade)[0].outcome == "adopted"


def test_descriptors_without_a_permission_are_refused(binder: Binder, listening: socket.socket) -> None:
    text = request("adopt", element(listening))
    with RawClient(binder.socket_path) as client, nothing_left(binder):
        with contextlib.suppress(PermissionError):  # since Linux 6.16
            client.send(text, [listening.fileno()])
            assert client.reply()["result"] == {"send": 1}
            client.ask(request("hello"))
        with contextlib.suppress(PermissionError):
            client.send(request("hello"), [listening.fileno()])
            client.reply()


def test_the_permission_ends_with_the_next_request_whatever_that_is(binder: Binder, listening: socket.socket) -> None:
    text = request("adopt", element(listening))
    with nothing_left(binder), RawClient(binder.socket_path) as client:
        assert client.ask(text)["result"] == {"send": 1}
        client.send(request("hello"), [listening.fileno()])
        assert client.reply()["result"]["name"] == "multibinder"
        with contextlib.suppress(PermissionError):
            client.send(text, [listening.fileno()])
            assert client.reply()["result"] == {"send": 1}
    assert addresses_of(binder) == []


def addresses_of(binder: Binder) -> list[str]:
    with multibinder.Client(binder.socket_path) as client:
        return [each.address for each in client.list()]


def test_sockets_that_are_not_what_the_request_says_are_refused_and_closed(
    binder: Binder, listening: socket.socket, host: str, run_dir: Path
) -> None:
    wanted = element(listening)
    with contextlib.ExitStack() as open_sockets:

        def kept(sock: socket.socket) -> socket.socket:
            return open_sockets.enter_context(sock)

        other = kept(socket.create_server((host, 0)))
        bound = kept(socket.socket())
        bound.bind((host, 0))
        client = kept(socket.create_connection(listening.getsockname()))
        served, _ = listening.accept()
        kept(served)
        unix, _ = map(kept, socket.socketpair())
        file = open_sockets.enter_context(open(os.devnull))
        cases: list[tuple[list[Json], list[int], str]] = [
            ([wanted], [other.fileno()], f"the socket that came is bound to {host}:{other.getsockname()[1]}"),
            ([element(bound)], [bound.fileno()], "the socket that came does not listen"),
            ([wanted], [served.fileno()], "the socket that came is connected to a client"),
            ([wanted], [client.fileno()], "the socket that came is connected to a client"),
            ([wanted], [unix.fileno()], "the socket that came is of another kind"),
            ([wanted], [file.fileno()], "the descriptor that came is no socket"),
            ([wanted, element(other)], [listening.fileno()], "2 descriptors were to come, and 1 did"),
            ([wanted, wanted], [listening.fileno()] * 2, "the same socket came twice in one request"),
            ([wanted, element(other)], [other.fileno(), listening.fileno()], "is bound to"),
        ]
        with nothing_left(binder):
            for elements, descriptors, says in cases:
                assert says in refusal(binder.socket_path, elements, descriptors)
        assert addresses_of(binder) == []
        # The server was not disturbed by any of this.
        kept(socket.create_connection(listening.getsockname()))
        kept(listening.accept()[0])


def test_too_many_descriptors_end_the_connection(binder: Binder, listening: socket.socket) -> None:
    text = request("adopt", element(listening))
    with nothing_left(binder), RawClient(binder.socket_path) as client:
        assert client.ask(text)["result"] == {"send": 1}
        client.send(text, [listening.fileno()] * 3)
        assert "1 descriptors were asked for, and 3 or more came" in client.reply()["error"]["message"]
        assert client.at_end()


def test_one_wrong_socket_keeps_the_others_from_being_adopted(
    binder: Binder, listening: socket.socket, host: str
) -> None:
    with socket.create_server((host, 0)) as other, multibinder.Client(binder.socket_path) as client:
        pairs = [(spec_of(listening), listening), (spec_of(other), listening)]
        assert client.list() == []
        with nothing_left(binder), pytest.raises(RequestError) as raised:
            client.adopt(pairs)
        assert raised.value.code == messages.COULD_NOT_ADOPT
        assert client.list() == []


def test_a_sibling_of_a_listener_that_the_binder_holds_becomes_the_next_shard(binder: Binder, host: str) -> None:
    with multibinder.Client(binder.socket_path) as client, client.bind([(host, 0)])[0] as held:
        address = held.getsockname()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with socket.create_server(address, reuse_port=True) as foreign:
            assert [each.shard for each in client.adopt([(spec_of(foreign), foreign)])] == [1]
            assert [each.cookie for each in client.list()] == [cookie_of(held), cookie_of(foreign)]


def test_the_clients_in_the_queue_of_an_adopted_shard_that_is_released_go_to_the_others(
    start_binder: StartBinder, listening: socket.socket
) -> None:
    """The binder has not the right to load the program; it needs none, because the command has."""
    listening.listen(64)
    listening.settimeout(PATIENCE_S)
    address = listening.getsockname()
    spec = spec_of(listening)
    with contextlib.ExitStack() as running:
        binder = start_binder(prefix=without_privileges())
        other = running.enter_context(socket.create_server(address, backlog=64, reuse_port=True))
        moves_clients = let_clients_move(listening)
        require("bpf", moves_clients, "loading a BPF program needs CAP_BPF")
        client = running.enter_context(multibinder.Client(binder.socket_path))
        offers = [Offer(spec, sock, (), moves_clients) for sock in (listening, other)]
        assert [each.shard for each in client.adopt(offers, owner="web")] == [0, 1]
        client.upgrade()
        waiting = [running.enter_context(socket.create_connection(address)) for _ in range(40)]
        [released] = client.release([ListenerSpec(spec.address, shard=1)], owner="web", drain=10)
        assert (released.outcome, released.reset) == ("closed", 0)
        for _ in waiting:
            running.enter_context(listening.accept()[0])


def test_the_control_socket_is_no_listener(binder: Binder) -> None:
    [control] = [
        int(number)
        for number in binder.descriptors()
        if os.readlink(f"/proc/{binder.pid}/fd/{number}").startswith("socket:") and _is_control(binder, int(number))
    ]
    from multibinder.kernel.pidfd import duplicate_socket

    with duplicate_socket(binder.pid, control) as sock:
        said = refusal(binder.socket_path, [{"address": "127.0.0.1", "port": 1}], [sock.fileno()])
    assert "it is the control socket of this binder" in said


def _is_control(binder: Binder, number: int) -> bool:
    from multibinder.kernel.pidfd import duplicate_socket

    with duplicate_socket(binder.pid, number) as sock:
        return sock.family == socket.AF_UNIX and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def test_a_socket_of_another_network_namespace_is_refused(binder: Binder, listening: socket.socket) -> None:
    said = refusal(
        binder.socket_path, [element(listening, netns=f"cookie:{own_cookie() + 12345}")], [listening.fileno()]
    )
    assert "in another network namespace" in said


def test_a_request_in_small_pieces_is_adopted(binder: Binder, listening: socket.socket) -> None:
    text = request("adopt", element(listening))
    with RawClient(binder.socket_path) as client:
        for at in range(len(text)):
            client.send(text[at : at + 1])
        assert client.reply()["result"] == {"send": 1}
        client.send(text[:1])
        client.send(text[1:2], [listening.fileno()])
        for at in range(2, len(text)):
            client.send(text[at : at + 1])
        assert client.reply()["result"]["listeners"][0]["outcome"] == "adopted"


@pytest.mark.parametrize("after", ["the permission", "the descriptors", "half of the second request"])
def test_a_client_that_dies_between_the_steps_leaves_no_descriptor(
    binder: Binder, listening: socket.socket, after: str
) -> None:
    text = request("adopt", element(listening))
    with nothing_left(binder), RawClient(binder.socket_path) as client:
        assert client.ask(text)["result"] == {"send": 1}
        if after == "the descriptors":
            client.send(text[:1], [listening.fileno()])
        if after == "half of the second request":
            client.send(text[: len(text) // 2], [listening.fileno()])
    assert addresses_of(binder) == []


def test_a_client_that_does_not_use_its_permission_is_dropped_in_time(
    start_binder: StartBinder, listening: socket.socket
) -> None:
    binder = start_binder("--request-timeout", "0.3")
    with RawClient(binder.socket_path) as client:
        assert client.ask(request("adopt", element(listening)))["result"] == {"send": 1}
        assert "incomplete" in client.reply()["error"]["message"]
        assert client.at_end()


def test_a_binder_without_free_descriptors_refuses_and_serves_on(binder: Binder, listening: socket.socket) -> None:
    text = request("adopt", element(listening))
    with RawClient(binder.socket_path) as client:
        assert client.ask(text)["result"] == {"send": 1}
        former = resource.prlimit(binder.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(binder.pid, resource.RLIMIT_NOFILE, (max(map(int, binder.descriptors())) + 1, former[1]))
        client.send(text, [listening.fileno()])
        assert "at its limit of open files" in client.reply()["error"]["message"]
        resource.prlimit(binder.pid, resource.RLIMIT_NOFILE, former)
        assert client.ask(text)["result"] == {"send": 1}
        client.send(text, [listening.fileno()])
        assert client.reply()["result"]["listeners"][0]["outcome"] == "adopted"


def test_another_user_may_not_adopt(start_binder: StartBinder, meet: Meet, listening: socket.socket) -> None:
    binder = start_binder("--mode", "0666")
    stranger: Stranger = meet(4242)
    with stranger.connect(binder.socket_path) as client:
        assert (
            "only root and the binder's own user"
            in client.ask(request("adopt", element(listening)))["error"]["message"]
        )
        with contextlib.suppress(PermissionError):
            client.send(request("hello"), [listening.fileno()])
            client.reply()


def test_a_policy_that_denies_the_address_denies_its_adoption(
    start_binder: StartBinder, run_dir: Path, listening: socket.socket
) -> None:
    host, port = listening.getsockname()
    policy = run_dir / "policy.toml"
    policy.write_text(f'[[rule]]\nname = "not this one"\ndeny = ["bind"]\naddress = ["{host}:{port}"]\n')
    policy.chmod(0o600)
    binder = start_binder("--policy", str(policy))
    with RawClient(binder.socket_path) as client:
        error = client.ask(request("adopt", element(listening)))["error"]
    assert error["code"] == messages.NOT_ALLOWED
    assert "Not allowed to adopt" in error["message"]


def test_more_elements_than_one_message_can_carry_are_refused(binder: Binder) -> None:
    elements = [{"address": "127.0.0.1", "port": port} for port in range(1, 254)]
    with RawClient(binder.socket_path) as client:
        message = client.ask(json.dumps({"method": "adopt", "id": 1, "params": elements}).encode())["error"]["message"]
    assert "one request adopts 252 at most" in message
