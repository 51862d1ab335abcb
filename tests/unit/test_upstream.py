"""The guard's own supervisor gets each READY, also when it does not read for a while."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder.binder.loop import Loop
from multibinder.binder.upstream import Upstream
from tests.support.loops import run_until


@pytest.fixture
def supervisor(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Yield the socket of a supervisor whose queue is full of watchdog messages."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as supervisor:
        supervisor.bind(str(run_dir / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", supervisor.getsockname())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as flooding:
            flooding.connect(supervisor.getsockname())
            try:
                while True:
                    flooding.send(b"WATCHDOG=1")
            except BlockingIOError:
                pass
        yield supervisor


def received(supervisor: socket.socket) -> list[bytes]:
    messages = []
    try:
        while True:
            messages.append(supervisor.recv(4096))
    except BlockingIOError:
        return [message for message in messages if message != b"WATCHDOG=1"]


def two_messages(loop: Loop, supervisor: socket.socket) -> list[bytes]:
    messages: list[bytes] = []

    def have_arrived() -> bool:
        messages.extend(received(supervisor))
        return len(messages) >= 2

    run_until(loop, have_arrived)
    return messages


def test_ready_arrives_although_the_supervisors_queue_was_full(supervisor: socket.socket) -> None:
    loop = Loop()
    upstream = Upstream(loop)
    for message in ("READY=1\nMAINPID=7", "STATUS=lost", "STOPPING=1"):
        upstream.send(dict.fromkeys([message.partition("=")[0]], ""), message)
    assert received(supervisor) == []
    assert two_messages(loop, supervisor) == [b"READY=1\nMAINPID=7", b"STOPPING=1"]
    upstream.close()
    loop.close()


def test_ready_that_waits_at_an_upgrade_of_the_guard_is_sent_by_the_next_one(supervisor: socket.socket) -> None:
    loop = Loop()
    upstream = Upstream(loop)
    for message in ("READY=1\nSTATUS=a\0b\n", "READY=1\nMAINPID=7"):
        upstream.send({"READY": "1"}, message)
    upstream.close()
    assert len(os.environ["MULTIBINDER_UNSENT"].encode()) < 4096
    received(supervisor)
    following = Upstream(loop)
    assert "MULTIBINDER_UNSENT" not in os.environ
    assert two_messages(loop, supervisor) == [b"READY=1\nSTATUS=ab", b"READY=1\nMAINPID=7"]
    following.close()
    loop.close()
    assert "MULTIBINDER_UNSENT" not in os.environ
