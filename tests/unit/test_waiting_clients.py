"""Clients that wait for their turn cost the loop nothing meanwhile."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from multibinder.binder.answer import Answer, Reply, result
from multibinder.binder.caller import Caller
from multibinder.binder.counters import RequestCounters
from multibinder.binder.loop import READ, Loop, Watchable
from multibinder.binder.quotas import Limits, Quotas, User
from multibinder.binder.server import ControlServer
from multibinder.binder.slices import Slices
from multibinder.binder.turns import Turns
from tests.support.stores import new_store


class CountingLoop(Loop):
    """Count how often a watched descriptor is reported."""

    reports = 0

    def watch(self, file: Watchable, callback: Callable[[], None], mask: int = READ) -> None:
        def counted() -> None:
            self.reports += 1
            callback()

        super().watch(file, counted, mask)


class NoTime(Turns):
    """Turns in which nobody has time left."""

    def has_time(self, user: User) -> bool:
        return False


def answer(text: bytes, caller: Caller, reply: Reply) -> Answer:
    return result("1", True)


def test_a_client_that_waits_for_its_turn_is_not_reported_in_each_turn(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(path)
        listening.listen()
        client.connect(path)
        client.sendall(b"{}\n")
        loop = CountingLoop()
        slices = Slices(loop)
        slices.turns = NoTime(loop)
        server = ControlServer(
            loop,
            [listening],
            quotas=Quotas(Limits()),
            slices=slices,
            counters=RequestCounters(),
            answer=answer,
            handoffs=new_store().handoffs,
        )
        loop.call_later(0.2, server.stop)
        server.run()
        turns = loop.turn
        loop.close()
    assert turns > 20
    assert loop.reports < 10
