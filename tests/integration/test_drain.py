"""A released listener that drains lets no new client in, and loses none of those that wait while its holders accept."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from multibinder import Address, Client, LocalProtocolError, Options, Released, RequestError
from multibinder.binder.listener import Receiver
from multibinder.binder.loop import Loop
from multibinder.binder.owner import Owner
from multibinder.binder.records import Record
from multibinder.binder.store import ListenerStore
from multibinder.kernel.accept_queue import accept_queue
from multibinder.kernel.new_clients import can_let_remote_clients_in
from multibinder.kernel.parking import is_parked
from multibinder.wire import release_params
from multibinder.wire.kinds.tcp import TCP
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.status import OwnerStatus
from tests.support import (
    PATIENCE_S,
    Binder,
    RawClient,
    can_connect,
    identities,
    multibinder,
    request,
    serving_pid,
    wait_until,
    without_privileges,
)
from tests.support.loops import run_until
from tests.support.namespaces import in_new_namespaces
from tests.support.stores import NothingDurable, new_store

LONG_S = 20.0


@pytest.fixture
def binder(run_dir: Path) -> Iterator[Binder]:
    with Binder(run_dir) as binder:
        yield binder.wait_until_ready()


class Served:
    """A listener of the binder, and clients that wait in its queue. A context manager."""

    def __init__(self, binder: Binder, address: tuple[str, int], waiting: int = 3, owner: str = "web") -> None:
        with Client(binder.socket_path) as client:
            [received] = client.bind([address], owner=owner)
        self.listener = socket.socket(fileno=received.detach())
        self.listener.settimeout(PATIENCE_S)
        self._open = contextlib.ExitStack()
        self._open.enter_context(self.listener)
        self.clients = [self._open.enter_context(socket.create_connection(address, PATIENCE_S)) for _ in range(waiting)]

    def serve(self, count: int) -> None:
        for _ in range(count):
            connection, _ = self.listener.accept()
            with connection:
                connection.sendall(b"served")

    def read(self) -> list[bytes]:
        """Return what each client gets: an answer, or nothing because it was reset."""
        answers = []
        for client in self.clients:
            try:
                answers.append(client.recv(100))
            except ConnectionResetError:
                answers.append(b"")
        return answers

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


class Release:
    """A release with a drain, in a thread of its own. A context manager, which waits for its end."""

    def __init__(self, binder: Binder, *addresses: tuple[str, int], drain: float = LONG_S, owner: str = "web") -> None:
        self.outcomes: list[Released] = []
        self.took_s = 0.0

        def release() -> None:
            began = time.monotonic()
            with Client(binder.socket_path) as client:
                self.outcomes = client.release(addresses, owner=owner, drain=drain)
            self.took_s = time.monotonic() - began

        self._thread = threading.Thread(target=release)
        self._thread.start()
        wait_until(lambda: self.outcomes or is_draining(binder, len(addresses)), "the drain has begun", log=binder.log)

    def wait(self) -> Released:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self.outcomes[0]

    def __enter__(self) -> Release:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(PATIENCE_S)


def is_draining(binder: Binder, count: int = 1) -> bool:
    with Client(binder.socket_path) as client:
        return sum(each.draining for each in client.list()) == count


def test_clients_that_wait_are_served_and_then_the_port_is_closed(binder: Binder, host: str) -> None:
    with Served(binder, (host, 8000)) as served, Release(binder, (host, 8000)) as release:
        with Client(binder.socket_path) as client:
            [shown] = client.list()
            assert (shown.owners, shown.claims, shown.draining) == ([], [], True)
            assert client.status(fresh=False).listeners[0].state == "draining"
        assert accept_queue(served.listener).length == 3
        served.serve(3)
        assert release.wait() == Released(f"{host}:8000", "closed")
        assert served.read() == [b"served"] * 3
        assert is_parked(served.listener)
        assert not can_connect((host, 8000))
        assert "waiting=3 drain_s=20" in binder.wait_for_log("event=draining")
        assert "outcome=closed" in binder.wait_for_log("event=released")


def test_without_waiting_clients_a_local_listener_is_closed_at_once(binder: Binder, host: str) -> None:
    with Served(binder, (host, 8000), 0), Release(binder, (host, 8000)) as release:
        assert release.wait().outcome == "closed"
        assert release.took_s < 1


def test_what_waits_when_the_time_is_over_is_reset_and_counted(binder: Binder, host: str) -> None:
    with Served(binder, (host, 8000)) as served, Release(binder, (host, 8000), drain=0.3) as release:
        served.serve(1)
        assert release.wait() == Released(f"{host}:8000", "closed", reset=2)
        assert sorted(served.read()) == [b"", b"", b"served"]
        assert "reset=2" in binder.wait_for_log("event=released")


def test_a_release_without_a_drain_says_how_many_were_reset(binder: Binder, host: str) -> None:
    with Served(binder, (host, 8000)), Client(binder.socket_path) as client:
        assert client.release([(host, 8000)], owner="web")[0].reset == 3


def test_a_claim_that_remains_keeps_the_port_open_and_nothing_drains(binder: Binder, host: str) -> None:
    with Served(binder, (host, 8000)), Served(binder, (host, 8000), 0, "other"):
        with Client(binder.socket_path) as client:
            [outcome] = client.release([(host, 8000)], owner="web", drain=LONG_S)
        assert (outcome.outcome, outcome.owners) == ("kept", ["other"])
        assert can_connect((host, 8000))


@pytest.mark.parametrize("owner", ["web", "another"])
def test_a_bind_during_the_drain_takes_the_listener_back_with_its_clients(
    binder: Binder, host: str, owner: str
) -> None:
    address = (host, 8000)
    with (
        Served(binder, address) as served,
        Release(binder, address) as release,
        Served(binder, address, 2, owner) as again,
    ):
        assert release.wait().outcome == "kept"
        assert release.wait().owners == [owner]
        again.serve(5)
        assert served.read() + again.read() == [b"served"] * 5
        with Client(binder.socket_path) as client:
            [shown] = client.list()
            assert (shown.owners, shown.draining, (shown.backlog or 0) > 100) == ([owner], False, True)


def test_a_bind_that_fails_leaves_the_drain_as_it_was(binder: Binder, host: str) -> None:
    with Served(binder, (host, 8000)) as served, Release(binder, (host, 8000)) as release:
        with socket.socket() as other, Client(binder.socket_path) as client:
            other.bind((host, 8001))
            other.listen()
            with pytest.raises(RequestError):
                client.bind([(host, 8000), (host, 8001)], owner="web")
        assert is_draining(binder)
        assert accept_queue(served.listener).limit == 0
        served.serve(3)
        assert release.wait().outcome == "closed"


def test_a_second_release_decides_how_long_the_drain_lasts(binder: Binder, host: str) -> None:
    with Served(binder, (host, 8000)), Release(binder, (host, 8000)) as first:
        with Client(binder.socket_path) as client:
            assert not client.release([(host, 8000)], owner="typo")[0].had_claim
            assert client.release([(host, 8000)], owner="web", drain=0.05)[0].reset == 3
        assert first.wait() == Released(f"{host}:8000", "closed", reset=3)


def test_giving_up_every_claim_ends_a_drain_at_once(binder: Binder, host: str) -> None:
    with Served(binder, (host, 8000)), Release(binder, (host, 8000)) as release:
        done = multibinder("release", "--socket", binder.socket_path, "--all-owners", f"{host}:8000")
        assert (done.returncode, done.stdout) == (0, f"{host}:8000: closed; 3 waiting clients were reset\n")
        assert release.wait().reset == 3


def test_the_drain_goes_on_when_the_client_that_asked_for_it_has_gone(binder: Binder, host: str) -> None:
    with Served(binder, (host, 8000)) as served:
        element = {"address": host, "port": 8000, "owner": "web", "drain": LONG_S}
        with RawClient(binder.socket_path) as client:
            client.send(request("release", element))
            wait_until(lambda: is_draining(binder), "the drain has begun", log=binder.log)
        served.serve(3)
        wait_until(lambda: is_parked(served.listener), "the port is closed", log=binder.log)
        assert served.read() == [b"served"] * 3


def test_a_holder_that_shuts_the_listener_down_ends_the_drain(binder: Binder, host: str) -> None:
    with Served(binder, (host, 8000)) as served, Release(binder, (host, 8000)) as release:
        served.listener.shutdown(socket.SHUT_RDWR)
        assert release.wait().outcome == "closed"
        assert not can_connect((host, 8000))


@pytest.mark.parametrize("end", ["upgrade", "kill", "stop"])
def test_the_end_of_the_binder_ends_the_drain_and_the_port_is_closed(run_dir: Path, host: str, end: str) -> None:
    with Binder(run_dir, "--guard") as guard:
        guard.wait_until_ready()
        with Served(guard, (host, 8000)) as served, Served(guard, (host, 8001), 0, "other"):
            element = {"address": host, "port": 8000, "owner": "web", "drain": LONG_S}
            with RawClient(guard.socket_path) as client:
                client.send(request("release", element))
                wait_until(lambda: is_draining(guard), "the drain has begun", log=guard.log)
                pid = serving_pid(guard.socket_path)
                if end == "upgrade":
                    assert multibinder("upgrade", "--socket", guard.socket_path).returncode == 0
                    assert client.reply()["result"][0]["reset"] == 3
                elif end == "kill":
                    os.kill(pid, signal.SIGKILL)
                    serving_pid(guard.socket_path, not_=pid)
                else:
                    guard.stop()
            wait_until(lambda: is_parked(served.listener), "the port is closed", log=guard.log)
            assert not can_connect((host, 8000))
            if end != "stop":
                assert can_connect((host, 8001))


def test_a_listener_that_was_taken_back_outlives_a_crash_and_an_upgrade(run_dir: Path, host: str) -> None:
    with Binder(run_dir, "--guard") as guard:
        guard.wait_until_ready()
        with Served(guard, (host, 8000)) as served, Release(guard, (host, 8000)):
            pid = serving_pid(guard.socket_path)
            with Served(guard, (host, 8000), 0, "other"):
                os.kill(pid, signal.SIGKILL)
                pid = serving_pid(guard.socket_path, not_=pid)
                assert multibinder("upgrade", "--socket", guard.socket_path).returncode == 0
                [(address, *_)] = identities(guard.socket_path)
                assert address == f"{host}:8000"
                with Client(guard.socket_path) as client:
                    assert client.list()[0].owners == ["other"]
                served.serve(3)
                assert served.read() == [b"served"] * 3


def test_a_thousand_listeners_drain_together_and_nobody_else_waits(binder: Binder, host: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    addresses = [(host, port) for port in range(10_000, 11_000)]
    try:
        with contextlib.ExitStack() as open_, Client(binder.socket_path) as client:
            for listener in client.bind(addresses, owner="web"):
                open_.enter_context(listener)
            waiting = [open_.enter_context(socket.create_connection(each, PATIENCE_S)) for each in addresses]
            with Release(binder, *addresses, drain=1.5) as release:
                longest_s = 0.0
                while not release.outcomes:
                    began = time.monotonic()
                    client.hello()
                    longest_s = max(longest_s, time.monotonic() - began)
                    time.sleep(0.005)
            assert len(waiting) == sum(each.reset for each in release.outcomes) == 1000
            assert release.took_s < 10
            assert longest_s < 0.5
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("drain", ["-1", "1e9", "1e400", "null", '"3"', "true"])
def test_a_drain_that_is_no_time_is_refused_and_nothing_is_released(binder: Binder, host: str, drain: str) -> None:
    with Served(binder, (host, 8000)), RawClient(binder.socket_path) as client:
        element = f'{{"address":"{host}","port":8000,"owner":"web","drain":{drain}}}'
        reply = client.ask(f'{{"jsonrpc":"2.0","id":"1","method":"release","params":[{element}]}}'.encode())
        assert "drain" in reply["error"]["message"], reply
        assert not is_draining(binder)
        assert can_connect((host, 8000))


def test_a_binder_that_is_too_old_for_a_drain_is_named_and_nothing_is_released(
    binder: Binder, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multibinder.wire.client.DRAIN", "not known to this binder")
    with Served(binder, (host, 8000)), Client(binder.socket_path) as client:
        with pytest.raises(LocalProtocolError, match=r"this binder \(.*\) cannot drain a listener: upgrade it"):
            client.release([(host, 8000)], owner="web", drain=1)
        assert client.list()[0].owners == ["web"]
    assert release_params.DRAIN == "drain"


def test_the_command_drains_and_says_when_the_owner_has_no_claim(binder: Binder, host: str) -> None:
    def release(*options: str) -> subprocess.CompletedProcess[str]:
        return multibinder("release", "--socket", binder.socket_path, *options, f"{host}:8000")

    with Served(binder, (host, 8000)):
        typo = release("--owner", "typo")
        assert (typo.returncode, typo.stdout) == (
            1,
            f"{host}:8000: kept, by web; not released: typo has no claim\n",
        )
        done = release("--owner", "web", "--drain", "0.1")
        assert (done.returncode, done.stdout) == (0, f"{host}:8000: closed; 3 waiting clients were reset\n")
        for wrong in ("nan", "-1", "inf", "soon"):
            assert release("--drain", wrong).returncode == 2, wrong


class Store:
    """A store of this process, on a loop."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.store: ListenerStore = new_store(call_later=self.loop.call_later)
        self.told: list[Released] = []
        self._me = Owner("", os.geteuid())

    def bind(self, address: str) -> socket.socket:
        """Bind a listener, and return a holder's copy."""
        [grant] = self.store.bind([ListenerSpec(Address.parse(address))], [self._me])
        return grant.listener.socket.dup()

    def drain(self, holder: socket.socket) -> None:
        spec = ListenerSpec(TCP.address_of(holder))
        assert self.store.releases.release(spec, self._me, self.told.append, drain_s=LONG_S) is None

    def run_until(self, condition: Callable[[], bool]) -> None:
        run_until(self.loop, condition)


@in_new_namespaces
def test_clients_of_other_hosts_are_refused_at_once_and_handshakes_in_progress_are_not_lost() -> None:
    """The other host is a network namespace. The first answer to a client there gets lost."""
    other = subprocess.Popen(["unshare", "--net", "sleep", "100"])
    bench = Store()
    try:
        there = f"/proc/{other.pid}/ns/net"
        wait_until(lambda: os.readlink(there) != os.readlink("/proc/self/ns/net"), "the other host is there")
        _connect_by_cable(other.pid)
        _try_from_another_host(bench, ["nsenter", f"--net={there}"])
    finally:
        bench.store.close()
        other.kill()
        other.wait()


def _connect_by_cable(pid: int) -> None:
    run = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip"]
    for command in (
        ["ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", str(pid)],
        ["ip", "addr", "add", "10.9.9.1/24", "dev", "near"],
        ["ip", "link", "set", "near", "up"],
        [*run, "addr", "add", "10.9.9.2/24", "dev", "far"],
        [*run, "link", "set", "far", "up"],
    ):
        subprocess.run(command, check=True)


def _set_neighbour(hardware_address: str) -> None:
    neighbour = ["lladdr", hardware_address, "dev", "near", "nud", "permanent"]
    subprocess.run(["ip", "neigh", "replace", "10.9.9.2", *neighbour], check=True)


def _try_from_another_host(bench: Store, run: list[str]) -> None:
    program = (
        "import socket\ntry: print(socket.create_connection(('10.9.9.1', 7999), 9).recv(9))\n"
        "except OSError as error: print(error)"
    )
    connect = [*run, sys.executable, "-c", program]
    far = subprocess.run([*run, "ip", "-br", "link", "show", "far"], capture_output=True, text=True, check=True)
    holder = bench.bind("10.9.9.1:7999")
    with holder:
        _set_neighbour("02:00:00:00:00:99")
        with subprocess.Popen(connect, stdout=subprocess.PIPE, text=True) as began:
            wait_until(lambda: " 03 " in Path("/proc/net/tcp").read_text(), "a handshake has begun")
            _set_neighbour(far.stdout.split()[2])
            bench.drain(holder)
            refused = subprocess.run(connect, capture_output=True, text=True, check=False)
            assert "refused" in refused.stdout
            assert bench.told == []
            holder.settimeout(PATIENCE_S)
            connection, _ = holder.accept()
            with connection:
                connection.sendall(b"served")
            assert began.communicate(timeout=PATIENCE_S)[0] == "b'served'\n"
        bench.run_until(lambda: bool(bench.told))
        assert bench.told == [Released("10.9.9.1:7999", "closed")]
        assert is_parked(holder)


def test_without_privileges_a_bind_during_the_drain_gets_a_new_socket(run_dir: Path) -> None:
    with Binder(run_dir, prefix=without_privileges()) as binder:
        binder.wait_until_ready()
        with Client(binder.socket_path) as client:
            [listener] = client.bind([("0.0.0.0", 0)], owner="web")
            port = listener.getsockname()[1]
            with listener, socket.create_connection(("127.0.0.1", port), PATIENCE_S):
                with Release(binder, ("0.0.0.0", port)) as release:
                    [again] = client.bind([("0.0.0.0", port)], owner="web")
                    assert release.wait().reset == 1
                with again:
                    assert is_parked(listener)
                    assert can_connect(("127.0.0.1", port))
        assert "reset=1" in binder.wait_for_log("event=drain-ended")


def test_a_wildcard_listener_waits_for_handshakes_and_is_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multibinder.wire.kinds.tcp._HANDSHAKE_S", 0.1)
    bench = Store()
    for address in ("0.0.0.0:0", "[::]:0"):
        with bench.bind(address) as holder:
            bench.drain(holder)
            began = time.monotonic()
            bench.run_until(lambda: bool(bench.told))
            assert time.monotonic() - began > 0.09
            assert bench.told.pop().outcome == "closed"
            assert is_parked(holder)


def test_neither_a_repair_nor_a_bind_that_fails_lets_clients_in_during_a_drain() -> None:
    if not can_let_remote_clients_in(socket.AF_INET):
        pytest.skip("this needs CAP_NET_RAW")
    bench = Store()
    with bench.bind("0.0.0.0:0") as holder, socket.socket() as other:
        bench.drain(holder)
        other.bind(("127.0.0.1", 0))
        other.listen()
        wanted = [ListenerSpec(TCP.address_of(holder)), ListenerSpec(TCP.address_of(other))]
        with pytest.raises(RequestError):
            bench.store.bind(wanted, [Owner("", os.geteuid())] * 2)
        bench.store.repair()
        assert holder.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16) == b"lo\0"
        assert accept_queue(holder).limit == 0
    bench.store.close()


def test_a_keeper_forgets_a_listener_when_its_drain_is_over_and_not_before() -> None:
    class Recorder(NothingDurable):
        forgotten = 0

        def note(self, changed: Sequence[Record], *, forget: bool = True) -> None:
            self.forgotten += sum(record.released for record in changed) if forget else 0

    durable, me = Recorder(), Owner("web", os.geteuid())
    store = new_store(durable=durable)
    try:
        [grant] = store.bind([ListenerSpec(Address.parse("127.0.0.1:0"))], [me], receiver=Receiver(1))
        spec = ListenerSpec(grant.listener.address)
        assert store.releases.release(spec, me, lambda _: None, drain_s=LONG_S) is None
        store.handoffs.confirm([grant])
        store.move(me, 4242)
        assert durable.forgotten == 0
        store.releases.end_drains()
        assert durable.forgotten == 1
    finally:
        store.close()


def test_the_name_of_a_listener_goes_with_the_user_that_released_it() -> None:
    store = new_store()
    first, second = Owner("web", 4242), Owner("web", 4343)
    try:
        [grant] = store.bind([ListenerSpec(Address.parse("127.0.0.1:0"), Options(name="front"))], [first])
        spec = ListenerSpec(grant.listener.address)
        assert store.releases.release(spec, first, lambda _: None, drain_s=LONG_S) is None
        [again] = store.bind([spec], [second])
        assert again.listener is grant.listener
        assert again.listener.owners == [OwnerStatus("web", 4343)]
        assert again.listener.options.name is None
    finally:
        store.close()


def test_a_request_with_a_drain_is_read_as_it_was_written() -> None:
    spec = ListenerSpec(Address.parse("127.0.0.1:80"))
    text = msgspec.json.encode([release_params.release_params(spec, "web", 2.5)])
    [element] = release_params.decode_release_params(msgspec.Raw(text))
    assert (element.spec(), element.owner, element.drain) == (spec, "web", 2.5)
    assert b"drain" not in msgspec.json.encode(release_params.release_params(spec, "", 0.0))
