"""Listeners on overlapping addresses keep their clients apart through a repair, an upgrade and a crash."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from multibinder import Client, ListenerSpec, Options, TcpAddress
from tests.support import Binder, identities, own_port, require_ipv6, serving_pid
from tests.support.stranger import Stranger
from tests.support.waiting import PATIENCE_S


@pytest.fixture
def guard(run_dir: Path) -> Iterator[Binder]:
    with Binder(run_dir, "--guard") as guard:
        guard.wait_until_ready()
        yield guard


def specs(host: str, port: int) -> list[ListenerSpec]:
    six = ListenerSpec(TcpAddress.of("::", port), Options(v6only=False))
    return [ListenerSpec(TcpAddress.of(host, port)), six, ListenerSpec(TcpAddress.of("0.0.0.0", port))]


def assert_each_gets_its_own(listeners: Sequence[socket.socket], host: str) -> None:
    """Connect to an address of each listener, and accept there and nowhere else."""
    port = listeners[0].getsockname()[1]
    for listener, target in zip(listeners, (host, "::1", "127.0.0.1"), strict=True):
        for _ in range(40):
            with socket.create_connection((target, port), timeout=PATIENCE_S) as client:
                listener.settimeout(PATIENCE_S)
                connection, peer = listener.accept()
                connection.close()
                assert peer[1] == client.getsockname()[1]
        assert not listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)


def assert_no_other_program_may_join(host: str, port: int) -> None:
    for target in (host, "127.0.0.1", "0.0.0.0", "::", "::1"):
        family = socket.AF_INET6 if ":" in target else socket.AF_INET
        with socket.socket(family) as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="Address already in use"):
                stranger.bind((target, port))


@pytest.mark.parametrize(
    "order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=["specific first", "0.0.0.0 first", ":: first"]
)
@pytest.mark.parametrize("together", [True, False], ids=["in one request", "one after the other"])
def test_overlapping_listeners_each_get_their_own_clients(
    guard: Binder, host: str, order: tuple[int, ...], together: bool
) -> None:
    require_ipv6()
    port = own_port()
    ordered = [specs(host, port)[index] for index in order]
    with Client(guard.socket_path) as client:
        if together:
            client.check(ordered, owner="web")
            received = client.bind(ordered, owner="web")
        else:
            received = []
            for spec in ordered:
                client.check([spec], owner="web")
                received += client.bind([spec], owner="web")
        listeners = [received[order.index(index)] for index in range(3)]
        assert_each_gets_its_own(listeners, host)
        if os.geteuid() == 0:
            assert_no_other_program_may_join(host, port)

        before = identities(guard.socket_path)
        client.upgrade()
        binder = serving_pid(guard.socket_path)
        os.kill(binder, signal.SIGKILL)
    # All of them are repaired by the next binder, which has none that listens.
    for listener in listeners:
        socket.socket.shutdown(listener, socket.SHUT_RDWR)  # as a program without the library does
    serving_pid(guard.socket_path, not_=binder)
    assert identities(guard.socket_path) == before
    assert_each_gets_its_own(listeners, host)
    if os.geteuid() == 0:
        assert_no_other_program_may_join(host, port)
    with Client(guard.socket_path) as client:
        client.release([ordered[0]], owner="web")
        received += client.bind([ordered[0]], owner="web")
        assert received[-1].getsockname()[1] == port
    for listener in received:
        listener.close()


def test_another_user_cannot_take_the_clients_of_a_wildcard_address(run_dir: Path, host: str) -> None:
    port = own_port()
    run_dir.chmod(0o755)
    with Binder(run_dir, "--mode", "0666") as binder, Stranger(path=binder.socket_path) as stranger:
        binder.wait_until_ready()
        with Client(binder.socket_path) as client, client.bind([("0.0.0.0", port)], owner="web")[0]:
            for method in ("check", "bind"):
                told = stranger.ask(method, {"address": host, "port": port, "owner": "web"})
                assert told.refusal == (
                    f"Could not bind: {host}:{port}: address already in use, by 0.0.0.0:{port}, which this binder "
                    "holds for web of uid 0; release it, or choose another address or port"
                )
