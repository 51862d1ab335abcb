"""A port whose client never received it does not stay open, and what was taken back leaves nothing changed.

The bytes of the protocol are literal: clients and binders of other versions and languages send them so.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import BinderUnavailable, Client, ListenerSpec, Options, TcpAddress
from multibinder.kernel.accept_queue import accept_queue
from tests.conftest import StartBinder
from tests.support import (
    Binder,
    RawClient,
    can_connect,
    clean_environment,
    descriptors_unchanged,
    request,
    serving_pid,
    wait_until,
)
from tests.support.raw_client import served_by
from tests.support.readable import wait_until_readable

RECEIVED = b'{"jsonrpc":"2.0","method":"received","params":{"id":"1"}}\n'
DECLINED = b'{"jsonrpc":"2.0","method":"declined","params":{"id":"1"}}\n'


def bind(host: str, *ports: int, acknowledge: bool = True, **options: object) -> bytes:
    elements = [{"address": host, "port": port, **options} for port in ports]
    offer = {"acknowledge": True} if acknowledge else {}
    return json.dumps({"jsonrpc": "2.0", "method": "bind", "id": "1", "params": elements, **offer}).encode()


def addresses(binder: Binder) -> list[str]:
    with Client(binder.socket_path) as client:
        return [str(listener.address) for listener in client.list()]


def assert_taken_back(binder: Binder, host: str, *ports: int) -> None:
    wait_until(lambda: not addresses(binder), "the binder holds no listener", log=binder.log)
    for port in ports:
        assert not can_connect((host, port))


def assert_kept(binder: Binder, host: str, port: int = 8000) -> None:
    with RawClient(binder.socket_path) as other:  # its request is served after the end of the client before it
        assert other.ask(request("hello"))
    assert addresses(binder) == [f"{host}:{port}"]
    assert can_connect((host, port))


@pytest.mark.parametrize("acknowledge", [False, True])
def test_a_client_that_dies_before_it_reads_its_answer_leaves_no_listener(
    binder: Binder, host: str, acknowledge: bool
) -> None:
    with RawClient(binder.socket_path) as client:
        client.send(bind(host, 8000, 8001, acknowledge=acknowledge))
        wait_until_readable(client.socket)
    assert_taken_back(binder, host, 8000, 8001)


def test_a_client_that_reads_its_answer_and_offered_no_acknowledgement_keeps_its_listener(
    binder: Binder, host: str
) -> None:
    with RawClient(binder.socket_path) as client:
        assert "acknowledge" not in client.ask(bind(host, 8000, acknowledge=False))["result"]
    assert_kept(binder, host)


def test_a_client_that_dies_before_it_acknowledges_leaves_no_listener(binder: Binder, host: str) -> None:
    with RawClient(binder.socket_path) as client:
        assert client.ask(bind(host, 8000))["result"]["acknowledge"] is True
    assert_taken_back(binder, host, 8000)


def test_a_client_that_acknowledges_keeps_its_listener(binder: Binder, host: str) -> None:
    with RawClient(binder.socket_path) as client:
        client.ask(bind(host, 8000))
        client.send(RECEIVED)
    assert_kept(binder, host)


def test_a_client_that_declines_gets_nothing_and_can_go_on(binder: Binder, host: str) -> None:
    with RawClient(binder.socket_path) as client:
        client.ask(bind(host, 8000))
        client.send(DECLINED)
        assert client.ask(request("list"))["result"] == []
        client.ask(bind(host, 8001))
        client.send(RECEIVED)
        assert [each["address"] for each in client.ask(request("list"))["result"]] == [f"{host}:8001"]


def test_an_acknowledgement_that_does_not_come_in_time_is_given_up(start_binder: StartBinder, host: str) -> None:
    binder = start_binder("--request-timeout", "0.5")
    with RawClient(binder.socket_path) as client:
        client.ask(bind(host, 8000))
        assert_taken_back(binder, host, 8000)
        assert "did not acknowledge its listeners within 0.5 s" in binder.wait_for_log("event=timed-out")
        with pytest.raises(BrokenPipeError):
            client.send(RECEIVED)  # so the client learns that it is too late


def test_an_acknowledgement_is_asked_for_only_if_something_rests_on_it(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as first:
        first.bind([(host, 8000)])[0].close()
        first.hello()  # so the binder has read the acknowledgement
    with RawClient(binder.socket_path) as second:
        assert "acknowledge" not in second.ask(bind(host, 8000))["result"]
        assert second.ask(bind(host, 8000, backlog=17))["result"]["acknowledge"] is True


def test_of_two_clients_of_one_owner_the_one_that_received_the_listener_keeps_it(binder: Binder, host: str) -> None:
    with RawClient(binder.socket_path) as one, RawClient(binder.socket_path) as other:
        one.ask(bind(host, 8000, owner="web"))
        other.ask(bind(host, 8000, owner="web"))
        other.send(RECEIVED)
        one.close()
        assert_kept(binder, host)


def test_a_half_closed_client_that_reads_late_keeps_its_listener(binder: Binder, host: str) -> None:
    with RawClient(binder.socket_path) as client:
        client.send(bind(host, 8000, acknowledge=False))
        client.socket.shutdown(socket.SHUT_WR)
        assert_kept(binder, host)
        assert client.reply()["result"]["descriptors"] == 1
    assert_kept(binder, host)


def test_a_half_closed_client_that_dies_before_it_reads_leaves_no_listener(binder: Binder, host: str) -> None:
    with RawClient(binder.socket_path) as client:
        client.send(bind(host, 8000, acknowledge=False))
        client.socket.shutdown(socket.SHUT_WR)
        assert_kept(binder, host)
    assert_taken_back(binder, host, 8000)


def test_an_answer_before_an_unread_one_counts_as_read(binder: Binder, host: str) -> None:
    with RawClient(binder.socket_path) as client:
        client.send(bind(host, 8000, acknowledge=False) + request("list"))
        client.socket.recv(1)  # the descriptor comes with the first byte
        wait_until(lambda: client.socket.recv(4096, socket.MSG_PEEK).count(b"\n") == 2, "both answers were sent")
    assert_kept(binder, host)


def test_what_was_taken_back_leaves_no_option_changed(binder: Binder, host: str) -> None:
    spec = ListenerSpec(TcpAddress.of(host, 8000), Options(backlog=11))
    with Client(binder.socket_path) as owner, owner.bind([spec])[0] as listener:
        with RawClient(binder.socket_path) as client:
            client.ask(bind(host, 8000, backlog=22, name="other"))
            assert accept_queue(listener).limit == 22
            client.send(DECLINED)
            client.ask(request("hello"))
        [status] = owner.list()
        assert (status.backlog, status.backlog_requested, status.name) == (11, 11, None)
        assert accept_queue(listener).limit == 11


# At RLIMIT_NOFILE

_BIND_AT_THE_LIMIT = """
import os, resource, sys
import multibinder
host, many, few = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with multibinder.Client() as client:
    client.hello()
    before = sorted(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))
    try:
        client.bind([(host, 8000 + n) for n in range(many)])
    except multibinder.RemoteProtocolError as error:
        print(error)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert client.list() == [], client.list()
    sockets = client.bind([(host, 9000 + n) for n in range(few)])
print(len(sockets))
"""


@pytest.mark.parametrize("many", [100, 300])
def test_a_client_at_its_limit_of_open_files_says_so_and_leaves_nothing_open(
    binder: Binder, host: str, many: int
) -> None:
    environment = clean_environment({"MULTIBINDER_SOCK": str(binder.socket_path)})
    command = [sys.executable, "-P", "-c", _BIND_AT_THE_LIMIT, host, str(many), "20"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    error, received = done.stdout.splitlines()
    assert f"the {many} listeners could not be received, and none was" in error
    assert "at its limit of 64 open files (RLIMIT_NOFILE" in error
    assert received == "20"
    assert not can_connect((host, 8000))
    assert len(addresses(binder)) == 20


# The keeper, an upgrade, a crash


@pytest.fixture
def guard(run_dir: Path) -> Binder:
    return Binder(run_dir, "--guard", "--request-timeout", "1")


@contextlib.contextmanager
def suspended(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_of_a_batch_with_a_listener_that_was_released_meanwhile_nothing_stays(guard: Binder, host: str) -> None:
    with guard.wait_until_ready(), RawClient(guard.socket_path) as client:
        with suspended(guard.pid):  # so the answer waits for the keeper
            client.send(bind(host, 8000, 8001, owner="x"))
            wait_until(lambda: len(addresses(guard)) == 2, "both are bound", log=guard.log)
            with Client(guard.socket_path) as other:
                other.release([(host, 8001)], owner="x")
        assert "released by its owner before" in client.reply()["error"]["message"]
        assert_taken_back(guard, host, 8000, 8001)


def test_a_bind_that_an_upgrade_answers_before_the_keeper_does_is_taken_back_too(guard: Binder, host: str) -> None:
    with guard.wait_until_ready(), RawClient(guard.socket_path) as client:
        binder = serving_pid(guard.socket_path)
        with suspended(guard.pid):
            client.send(bind(host, 8000))
            wait_until(lambda: len(addresses(guard)) == 1, "it is bound", log=guard.log)
            os.kill(binder, signal.SIGUSR1)
            client.reply()
            client.close()
        assert_taken_back(guard, host, 8000)


@pytest.mark.parametrize("acknowledges", [True, False])
def test_a_pending_handoff_is_settled_after_an_upgrade(binder: Binder, host: str, acknowledges: bool) -> None:
    with RawClient(binder.socket_path) as one, RawClient(binder.socket_path) as other:
        one.ask(bind(host, 8000))
        other.ask(bind(host, 8001))
        with Client(binder.socket_path) as client:
            client.upgrade()
            client.hello()
        if acknowledges:
            one.send(RECEIVED)
    wait_until(lambda: f"{host}:8001" not in addresses(binder), "what was not acknowledged is gone", log=binder.log)
    assert not can_connect((host, 8001))
    assert can_connect((host, 8000)) is acknowledges


def test_a_client_that_dies_before_it_reads_its_answer_after_an_upgrade_leaves_no_listener(
    binder: Binder, host: str
) -> None:
    with RawClient(binder.socket_path) as client:
        client.send(bind(host, 8000, acknowledge=False))
        wait_until_readable(client.socket)
        with Client(binder.socket_path) as other:
            other.upgrade()
            other.hello()
        assert_kept(binder, host)
    assert_taken_back(binder, host, 8000)


def test_a_handoff_that_a_crash_left_unacknowledged_is_taken_back_if_no_process_holds_it(
    guard: Binder, host: str
) -> None:
    with guard.wait_until_ready(), RawClient(guard.socket_path) as held, RawClient(guard.socket_path) as lost:
        held.ask(bind(host, 8000))
        lost.ask(bind(host, 8001))
        for descriptor in lost.descriptors:
            os.close(descriptor)
        lost.descriptors.clear()
        binder = serving_pid(guard.socket_path)
        os.kill(binder, signal.SIGKILL)
        serving_pid(guard.socket_path, not_=binder)
        assert len(addresses(guard)) == 2, "a client may come back for its listener"
        wait_until(lambda: addresses(guard) == [f"{host}:8000"], "the lost one is gone", log=guard.log)
        assert can_connect((host, 8000))
        assert not can_connect((host, 8001))


# Other versions


def test_an_old_binder_that_asks_for_no_acknowledgement_gets_none(run_dir: Path, host: str) -> None:
    seen: list[bytes] = []
    with socket.create_server((host, 0)) as listener:
        port = listener.getsockname()[1]
        result = {"listeners": [{"address": f"{host}:{port}", "backlog": 128}], "descriptors": 1}

        def serve(connection: socket.socket) -> None:
            asked = json.loads(connection.recv(65536))
            reply = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}).encode()
            socket.send_fds(connection, [reply], [listener.fileno()])
            seen.append(connection.recv(65536))

        with served_by(run_dir / "s", serve), Client(run_dir / "s") as client:
            client.bind([(host, port)])[0].close()
    assert seen == [b""]


def test_a_client_whose_acknowledgement_comes_too_late_does_not_take_the_listener_for_its_own(
    run_dir: Path, host: str
) -> None:
    with socket.create_server((host, 0)) as listener:
        port = listener.getsockname()[1]
        handoffs = [{"address": f"{host}:{port}", "backlog": 128}]
        result = {"listeners": handoffs, "descriptors": 1, "acknowledge": True}

        def serve(connection: socket.socket) -> None:
            asked = json.loads(connection.recv(65536))
            reply = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}).encode()
            connection.shutdown(socket.SHUT_RD)
            socket.send_fds(connection, [reply], [listener.fileno()])

        with (
            descriptors_unchanged(),
            served_by(run_dir / "s", serve),
            Client(run_dir / "s") as client,
            pytest.raises(BinderUnavailable, match="took the listeners back"),
        ):
            client.bind([(host, port)])
