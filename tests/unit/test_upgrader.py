"""An upgrade that is refused before its rehearsal, and whom that is told when."""

from __future__ import annotations

from multibinder.binder.loop import Loop
from multibinder.binder.upgrader import Upgrader
from multibinder.wire.errors import MultibinderError


def refuse() -> None:
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


def test_a_refusal_before_the_rehearsal_comes_from_the_loop() -> None:
    loop = Loop()
    upgrader = Upgrader(loop, ["/bin/false"], "1", [], check=refuse, begin=lambda: None)
    assert told_of_an_upgrade(upgrader, loop) == [(None, "the policy is broken")]


def test_a_rehearsal_that_cannot_be_started_is_told_from_the_loop() -> None:
    loop = Loop()
    command = ["/nowhere/python", "-m", "module", "{}"]
    upgrader = Upgrader(loop, command, "1", [], check=lambda: None, begin=lambda: None)
    [(version, why)] = told_of_an_upgrade(upgrader, loop)
    assert version is None
    assert why == "its rehearsal cannot be started: No such file or directory"
