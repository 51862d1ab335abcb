"""An upgrade that is refused before its rehearsal: who asked for it is told from the loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from multibinder.binder.loop import Loop
from multibinder.binder.upgrader import Upgrader
from multibinder.wire.errors import MultibinderError
from tests.support.stores import new_store


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def refuse() -> dict[str, str]:
    raise MultibinderError("the policy is broken")


def told_of_an_upgrade(upgrader: Upgrader, loop: Loop) -> list[tuple[str | None, str]]:
    """Ask for an upgrade; nothing may be told before the loop runs."""
    told: list[tuple[str | None, str]] = []

    def on_rehearsed(version: str | None, why: str) -> None:
        told.append((version, why))
        loop.stop()

    upgrader.upgrade(on_rehearsed)
    assert told == []
    loop.run(lambda: None)
    return told


def test_a_refusal_before_the_rehearsal_comes_from_the_loop(loop: Loop) -> None:
    upgrader = Upgrader(loop, ["/bin/false"], "1", new_store(), check=refuse, begin=lambda: None)
    assert told_of_an_upgrade(upgrader, loop) == [(None, "the policy is broken")]


def test_a_rehearsal_that_cannot_be_started_is_told_from_the_loop(loop: Loop) -> None:
    command = ["/nowhere/python", "-m", "module", "{}"]
    upgrader = Upgrader(loop, command, "1", new_store(), check=dict, begin=lambda: None)
    [(version, why)] = told_of_an_upgrade(upgrader, loop)
    assert version is None
    assert why == "its rehearsal cannot be started: No such file or directory"
