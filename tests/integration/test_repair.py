"""The binder undoes what a holder does to a shared socket, also without a request."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from multibinder import Client, ListenerSpec, Options, TcpAddress
from multibinder.binder.owner import Owner
from multibinder.binder.settings import Settings
from multibinder.binder.store import ListenerStore
from multibinder.cli.invocation import Invocation
from multibinder.kernel.accept_queue import accept_queue
from tests.support import Binder, can_connect, wait_until
from tests.support.stores import new_store

#: A binder that checks its listeners more often than every 15 s.
_HASTY = """
from multibinder.binder.settings import Timings
from multibinder.cli import binder_main
binder_main.main(Timings(repair_every_s=0.1))
"""


NOBODY = Owner("", os.geteuid())


@pytest.fixture
def store() -> Iterator[ListenerStore]:
    store = new_store()
    yield store
    store.close()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_socket_that_was_shut_down_listens_again(store: ListenerStore, caplog: pytest.LogCaptureFixture) -> None:
    [grant] = store.bind([ListenerSpec(TcpAddress.parse("127.0.0.1:0"), Options(backlog=30))], [NOBODY])
    address = grant.listener.address.sockaddr
    with grant.listener.socket.dup() as holder:
        holder.shutdown(socket.SHUT_RDWR)
    assert not can_connect(address)
    store.repair()
    assert can_connect(address)
    assert accept_queue(grant.listener.socket).limit == 30
    assert said(caplog) == ["repaired"]


@pytest.mark.parametrize("backlog", [1, 100])
def test_a_backlog_that_was_changed_is_restored(
    store: ListenerStore, caplog: pytest.LogCaptureFixture, backlog: int
) -> None:
    [grant] = store.bind([ListenerSpec(TcpAddress.parse("127.0.0.1:0"), Options(backlog=30))], [NOBODY])
    with grant.listener.socket.dup() as holder:
        holder.listen(backlog)
    store.repair()
    assert accept_queue(grant.listener.socket).limit == 30
    assert said(caplog) == ["backlog-restored"]


def test_an_intact_listener_is_left_alone(store: ListenerStore, caplog: pytest.LogCaptureFixture) -> None:
    store.bind([ListenerSpec(TcpAddress.parse("127.0.0.1:0"))] * 3, [NOBODY] * 3)
    with caplog.at_level(logging.DEBUG, "multibinder"):
        for _ in range(3):
            store.repair()
    assert said(caplog) == []


def test_a_listener_that_cannot_be_repaired_is_logged_and_the_others_are_repaired(
    store: ListenerStore, caplog: pytest.LogCaptureFixture
) -> None:
    grants = store.bind([ListenerSpec(TcpAddress.parse("127.0.0.1:0"))] * 2, [NOBODY, NOBODY])
    first, second = (grant.listener for grant in grants)
    for listener in (first, second):
        listener.socket.shutdown(socket.SHUT_RDWR)
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(first.address.sockaddr)
        thief.listen()
        store.repair()
        assert said(caplog) == ["cannot-repair", "repaired"]
        assert str(first.address) in str(caplog.records[0].__dict__["fields"])
    assert can_connect(second.address.sockaddr)


def test_a_binder_repairs_its_listeners_without_any_request(run_dir: Path, host: str) -> None:
    settings = msgspec.json.encode(Invocation(Settings(str(run_dir / "mb.sock")))).decode()
    with Binder(run_dir, command=[sys.executable, "-P", "-c", _HASTY, settings]) as binder:
        binder.wait_until_ready()
        with Client(binder.socket_path) as client:
            [listener] = client.bind([ListenerSpec(TcpAddress.parse(f"{host}:8000"), Options(backlog=30))])
        with listener:
            socket.socket.shutdown(listener, socket.SHUT_RDWR)  # as a program without the library does
            wait_until(lambda: accept_queue(listener).listening, "the socket listens again", log=binder.log)
            assert f"{host}:8000" in binder.wait_for_log("event=repaired")
            socket.socket.listen(listener, 2)  # as a program in another language would
            wait_until(lambda: accept_queue(listener).limit == 30, "the socket has its backlog again", log=binder.log)
            assert f"{host}:8000" in binder.wait_for_log("event=backlog-restored")
