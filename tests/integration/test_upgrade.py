"""The binder upgrades in place without an effect on its clients."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from multibinder import BindError, Client, ListenerSpec, Options, RequestError, TcpAddress
from tests.conftest import StartBinder
from tests.support import (
    Binder,
    BrokenCode,
    RawClient,
    ask,
    can_connect,
    identities,
    multibinder,
    request,
    require_ipv6,
    wait_until,
)


def served(binder: Binder) -> int:
    """Return how often the binder has begun to serve."""
    return binder.log_path.read_text().count("event=serving ")


def upgrade(binder: Binder) -> None:
    with Client(binder.socket_path) as client:
        client.upgrade()
        assert client.hello().pid == binder.pid


def by_command(binder: Binder) -> None:
    done = multibinder("upgrade", "--socket", binder.socket_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"pid {binder.pid}\n")


def by_signal(binder: Binder) -> None:
    before = served(binder)
    binder.send_signal(signal.SIGUSR1)
    wait_until(lambda: served(binder) > before, "the binder serves again", log=binder.log)


@pytest.mark.parametrize("upgrade_it", [by_command, by_signal])
def test_an_upgrade_keeps_everything(binder: Binder, host: str, upgrade_it: Callable[[Binder], None]) -> None:
    require_ipv6()
    wanted = [
        ListenerSpec(TcpAddress.parse(f"{host}:8000"), Options(backlog=77, name="web")),
        ListenerSpec(TcpAddress.parse("[::1]:0"), Options(v6only=True)),
    ]
    with Client(binder.socket_path) as client:
        sockets = [*client.bind(wanted, owner="first"), *client.bind(wanted[:1], owner="second")]
        before = client.list()
    inode = os.stat(binder.socket_path).st_ino
    upgrade_it(binder)
    assert served(binder) == 2
    with Client(binder.socket_path) as client:
        assert client.hello().pid == binder.pid
        assert client.list() == before
    assert {status.backlog_requested for status in before} == {77, None}
    assert os.stat(binder.socket_path).st_ino == inode
    for listener in sockets:
        listener.close()
    assert can_connect((host, 8000))
    assert binder.stop() == 0
    assert not binder.socket_path.exists()
    assert not Path(f"{binder.socket_path}.lock").exists()


def test_listeners_can_be_bound_and_released_after_an_upgrade(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        [first] = client.bind([(host, 8000)], owner="a")
        upgrade(binder)
        [second] = client.bind([(host, 8000)], owner="b")
        assert os.fstat(first.fileno()).st_ino == os.fstat(second.fileno()).st_ino
        assert client.release([(host, 8000)], owner="a")[0].outcome == "kept"
        assert client.release([(host, 8000)], owner="b")[0].outcome == "closed"
        first.close()
        second.close()
        upgrade(binder)
        assert client.list() == []
    assert not can_connect((host, 8000))


def test_a_client_in_the_accept_queue_waits_through_an_upgrade(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
        with socket.create_connection((host, 8000)) as waiting:
            waiting.sendall(b"still here")
            upgrade(binder)
            [listener] = client.bind([(host, 8000)])
            with listener, listener.accept()[0] as connection:
                assert connection.recv(100) == b"still here"


def test_an_idle_connection_is_answered_after_an_upgrade(binder: Binder) -> None:
    with RawClient(binder.socket_path) as fresh, RawClient(binder.socket_path) as used:
        used.ask(request("hello"))
        upgrade(binder)
        for client in (fresh, used):
            assert client.ask(request("hello"))["result"]["pid"] == binder.pid


def test_several_clients_that_ask_for_an_upgrade_at_once_are_all_answered(binder: Binder) -> None:
    with RawClient(binder.socket_path) as one, RawClient(binder.socket_path) as two:
        one.send(request("upgrade"))
        two.send(request("upgrade"))
        assert "result" in one.reply()
        assert "result" in two.reply()
        for client in (one, two):
            assert client.ask(request("hello"))["result"]["pid"] == binder.pid


def test_no_client_notices_ten_upgrades(binder: Binder, host: str) -> None:
    done = threading.Event()
    counts = [0] * 4
    failures: list[str] = []

    def bind_again_and_again(number: int) -> None:
        while not done.is_set():
            try:
                with Client(binder.socket_path) as client:
                    for port in (8000, 8001 + number):
                        client.bind([(host, port)], owner=f"thread-{number}")[0].close()
                        counts[number] += 1
            except Exception as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=bind_again_and_again, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: min(counts) >= 2, "all clients have bound both of their addresses")
        known = identities(binder.socket_path)
        for _ in range(10):
            upgrade(binder)
            before = list(counts)
            wait_until(lambda before=before: all(map(int.__gt__, counts, before)), "all clients bind again")  # type: ignore[misc]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert served(binder) == 11
    assert [known_[:3] for known_ in identities(binder.socket_path)] == [known_[:3] for known_ in known]


def test_new_code_that_cannot_start_is_refused_with_its_reason(
    start_binder: StartBinder, run_dir: Path, host: str
) -> None:
    code = BrokenCode(run_dir / "code")
    binder = start_binder(environment=code.environment)
    with Client(binder.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
        before = client.list()
        code.breaks("half of it is missing")
        with pytest.raises(RequestError, match=r"ImportError: half of it is missing \(at .*\); the running"):
            client.upgrade()
        done = multibinder("upgrade", "--socket", binder.socket_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert "half of it is missing" in done.stderr
        assert "Traceback" not in done.stderr
        binder.wait_for_log("event=upgrade-refused")
        assert client.list() == before
        code.mend()
        client.upgrade()
        assert client.list() == before
    assert served(binder) == 2


def test_a_client_whose_upgrade_a_broken_policy_refuses_is_served_further(
    start_binder: StartBinder, run_dir: Path
) -> None:
    policy = run_dir / "policy.toml"
    policy.write_text("")
    policy.chmod(0o600)
    binder = start_binder("--policy", str(policy))
    policy.write_text("broken")
    with Client(binder.socket_path, timeout=5) as client:
        with pytest.raises(RequestError, match="not TOML"):
            client.upgrade()
        assert client.hello().pid == binder.pid


def test_a_refused_upgrade_by_signal_is_logged(start_binder: StartBinder, run_dir: Path) -> None:
    code = BrokenCode(run_dir / "code")
    binder = start_binder(environment=code.environment)
    code.breaks("no such thing")
    binder.send_signal(signal.SIGUSR1)
    assert "no such thing" in binder.wait_for_log("event=upgrade-refused")
    assert ask(binder.socket_path, request("hello"))["result"]["pid"] == binder.pid


@pytest.mark.parametrize("moment", ["event=serving", "event=upgrading"])
def test_sigterm_during_an_upgrade_is_not_lost(run_dir: Path, moment: str) -> None:
    for attempt in range(5):
        with Binder(run_dir, name=f"mb{attempt}") as binder:
            binder.wait_until_ready()
            binder.send_signal(signal.SIGUSR1)
            binder.wait_for_log(moment)
            binder.send_signal(signal.SIGTERM)
            assert binder.wait() == 0
            assert not binder.socket_path.exists()


def test_upgrades_leak_no_descriptors(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        for listener in client.bind([(host, port) for port in range(8000, 8010)]):
            listener.close()
        upgrade(binder)
        client.hello()
        before = len(binder.descriptors())
        for _ in range(9):
            client.upgrade()
            client.hello()
        wait_until(lambda: len(binder.descriptors()) <= before, "no descriptor is left over", log=binder.log)


def test_two_thousand_listeners_survive_an_upgrade(binder: Binder) -> None:
    with Client(binder.socket_path) as client:
        for _ in range(8):
            for listener in client.bind([("127.0.0.1", 0)] * 250, owner="many"):
                listener.close()
        before = client.list()
        assert len(before) == 2000
        client.upgrade()
        assert client.list() == before


def test_an_upgrade_keeps_the_options_of_the_start(start_binder: StartBinder) -> None:
    binder = start_binder("--max-listeners", "2")
    with Client(binder.socket_path) as client:
        client.bind([("127.0.0.1", 0)])[0].close()
        client.upgrade()
        client.bind([("127.0.0.1", 0)])[0].close()
        with pytest.raises((BindError, RequestError), match="limit of 2 listeners"):
            client.bind([("127.0.0.1", 0)])
