"""Many listeners and many bind cycles: every listener arrives, and no descriptor is left over."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from multibinder import BindError, Client, ListenerSpec, Options, TcpAddress
from tests.conftest import StartBinder
from tests.support import Binder, RawClient, can_connect, descriptors_unchanged, request, require, somaxconn

COUNT = 1000


def cookie(sock: socket.socket) -> bytes:
    """Return SO_COOKIE, which identifies a socket as long as it exists."""
    return sock.getsockopt(socket.SOL_SOCKET, 57, 8)


@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_listeners_come_in_one_request_each_with_its_own_address(binder: Binder, host: str) -> None:
    wanted = [(host, 10_000 + number) for number in range(COUNT)]
    with Client(binder.socket_path) as client, descriptors_unchanged():
        listeners = client.bind(wanted)
        assert [listener.getsockname() for listener in listeners] == wanted
        assert len({listener.fileno() for listener in listeners}) == COUNT
        assert len({cookie(listener) for listener in listeners}) == COUNT
        for listener in listeners:
            listener.close()
        again = client.bind(reversed(wanted))
        assert [listener.getsockname() for listener in again] == wanted[::-1]
        for listener in again:
            listener.close()
        assert len(client.list()) == COUNT


@pytest.mark.usefixtures("many_descriptors")
def test_a_reply_continues_in_messages_of_at_most_252_descriptors(binder: Binder, host: str) -> None:
    with RawClient(binder.socket_path) as client:
        client.send(request("bind", *({"address": host, "port": 10_000 + number} for number in range(COUNT))))
        stream = b""
        counts = []
        while stream.count(b"\n") < 4:
            arrived, rights = client.receive()
            stream += arrived
            if rights:
                counts.append(len(rights))
        assert counts == [252, 252, 252, 244]
        reply, *continuations = [json.loads(line) for line in stream.splitlines()]
        assert reply["result"]["descriptors"] == COUNT
        assert [element["address"] for element in reply["result"]["listeners"]] == [
            f"{host}:{10_000 + number}" for number in range(COUNT)
        ]
        assert continuations == [
            {"jsonrpc": "2.0", "method": "descriptors", "params": {"from": first}} for first in (252, 504, 756)
        ]


@pytest.mark.parametrize("count", [1, 252, 253, 504, 505])
@pytest.mark.usefixtures("many_descriptors")
def test_every_count_around_the_limit_of_one_message_comes_whole(binder: Binder, host: str, count: int) -> None:
    with Client(binder.socket_path) as client:
        listeners = client.bind([(host, 10_000 + number) for number in range(count)])
        assert [listener.getsockname()[1] for listener in listeners] == list(range(10_000, 10_000 + count))
        for listener in listeners:
            listener.close()
        assert client.hello().pid == binder.pid


def test_a_reply_that_is_larger_than_the_sockets_buffer_carries_each_descriptor_once(binder: Binder, host: str) -> None:
    count = 5000
    with RawClient(binder.socket_path) as client:
        client.send(request("bind", *[{"address": host, "port": 10_000}] * count))
        buffer = client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        size = received = 0
        while received < count:
            arrived, rights = client.receive()
            assert arrived, f"the connection ended after {received} descriptors"
            size += len(arrived)
            received += len(rights)
            while client.descriptors:
                os.close(client.descriptors.pop())
        assert received == count
        assert size > buffer, "the reply fits, so this shows nothing"


@pytest.mark.usefixtures("many_descriptors")
def test_of_a_thousand_with_one_in_use_none_is_bound(binder: Binder, host: str) -> None:
    with socket.socket() as taken, Client(binder.socket_path) as client:
        client.hello()
        taken.bind((host, 10_000 + COUNT // 2))
        taken.listen()
        before = binder.descriptors()
        with descriptors_unchanged(), pytest.raises(BindError, match="address already in use") as refusal:
            client.bind([(host, 10_000 + number) for number in range(COUNT)])
        assert refusal.value.address == f"{host}:{10_000 + COUNT // 2}"
        assert binder.descriptors() == before
        assert client.list() == []
    assert not can_connect((host, 10_000))
    assert not can_connect((host, 10_000 + COUNT - 1))


def test_the_same_address_a_thousand_times_is_one_listener(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        listeners = client.bind([(host, 10_000)] * 300)
        assert len({cookie(listener) for listener in listeners}) == 1
        for listener in listeners:
            listener.close()
        assert len(client.list()) == 1


def test_500_binds_and_closes_of_one_listener_leave_no_descriptor(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client, descriptors_unchanged():
        client.bind([(host, 10_000)])[0].close()
        before = binder.descriptors()
        for _ in range(500):
            client.bind([(host, 10_000)])[0].close()
        assert binder.descriptors() == before
        assert client.list()[0].handoffs == 501


def test_500_clients_that_bind_and_release_leave_no_descriptor(binder: Binder, host: str) -> None:
    with RawClient(binder.socket_path) as witness:
        witness.ask(request("hello"))
        before = binder.descriptors()
        with descriptors_unchanged():
            for _ in range(500):
                with Client(binder.socket_path) as client:
                    client.bind([(host, 10_000)], owner="me")[0].close()
                    assert client.release([(host, 10_000)], owner="me")[0].outcome == "closed"
        witness.ask(request("hello"))
        assert len(binder.descriptors()) == len(before)


def test_500_refused_binds_leave_no_descriptor(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        client.hello()
        before = binder.descriptors()
        for _ in range(500):
            with pytest.raises(BindError, match="no interface of this host has"):
                client.bind([(host, 10_000), ("192.0.2.1", 10_000)])
        assert binder.descriptors() == before


def test_a_backlog_above_somaxconn_is_a_warning_with_the_effective_value(binder: Binder, host: str) -> None:
    limit = int(Path("/proc/sys/net/core/somaxconn").read_text())
    wanted = ListenerSpec(TcpAddress.of(host, 10_000), Options(backlog=limit * 2))
    with Client(binder.socket_path) as client:
        with pytest.warns(
            RuntimeWarning, match=f"a backlog of {limit * 2} was asked for, but the kernel allows {limit}"
        ):
            client.bind([wanted])[0].close()
        [status] = client.list()
        assert (status.backlog, status.backlog_requested) == (limit, limit * 2)
    assert str(limit) in binder.wait_for_log("event=backlog-capped")


@pytest.fixture
def elsewhere(start_binder: StartBinder) -> Binder:
    """A binder in a new network namespace, where the test may change somaxconn."""
    # In a user namespace, root's directories belong to a user that it may not map, and whom the binder does not trust.
    require("root", os.geteuid() == 0, "only root can make a network namespace without a user namespace")
    unshare = ["unshare", "--net"]
    possible = shutil.which("unshare") and subprocess.run([*unshare, "true"], capture_output=True, check=False)
    require("namespaces", possible and possible.returncode == 0, "no network namespace can be made here")
    return start_binder(prefix=unshare)


def set_somaxconn(binder: Binder, limit: int) -> None:
    enter = ["nsenter", "--target", str(binder.pid), "--net"]
    subprocess.run([*enter, "sh", "-c", f"echo {limit} > /proc/sys/net/core/somaxconn"], check=True)


def test_a_backlog_is_granted_whole_once_the_kernel_allows_it(elsewhere: Binder) -> None:
    # The warning tells the user to raise net.core.somaxconn and to bind again.
    wanted = ListenerSpec(TcpAddress.parse("0.0.0.0:10000"), Options(backlog=2000))
    set_somaxconn(elsewhere, 1000)
    with Client(elsewhere.socket_path) as client:
        with pytest.warns(RuntimeWarning, match="2000 was asked for, but the kernel allows 1000"):
            client.bind([wanted])[0].close()
        set_somaxconn(elsewhere, 3000)
        client.bind([wanted])[0].close()
        assert client.list()[0].backlog == 2000


def test_the_default_backlog_follows_what_the_kernel_allows(elsewhere: Binder) -> None:
    set_somaxconn(elsewhere, 1000)
    with Client(elsewhere.socket_path) as client:
        for limit in (1000, 3000, 2000):
            set_somaxconn(elsewhere, limit)
            client.bind([("0.0.0.0", 10_000)])[0].close()
            assert client.list()[0].backlog == limit


def test_the_default_backlog_is_what_the_kernel_allows(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        client.bind([(host, 10_000)])[0].close()
        assert client.list()[0].backlog == somaxconn()


def test_every_handoff_is_of_the_same_socket_until_it_is_released(binder: Binder, host: str) -> None:
    def identity() -> bytes:
        with Client(binder.socket_path) as client, client.bind([(host, 10_000)])[0] as listener:
            return cookie(listener)

    first = identity()
    assert {identity() for _ in range(5)} == {first}
    with Client(binder.socket_path) as client:
        client.release([(host, 10_000)])
    assert identity() != first
