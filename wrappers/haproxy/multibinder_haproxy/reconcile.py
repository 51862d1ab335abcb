"""Make the binder's listeners of an instance agree with what HAProxy accepts on: release the others."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from multibinder import MultibinderError
from multibinder.launch import first_switch
from multibinder_haproxy import sockets
from multibinder_haproxy.accepting import CannotTell, unused_binds
from multibinder_haproxy.config.model import Config, Slot, UnusedBind
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.invocation import Invocation
from multibinder_haproxy.master import Master

#: While HAProxy up to 3.0 executes itself once more, it cannot be asked; it is asked again for this time.
_ASK_FOR_S, _AGAIN_S = 3.0, 0.05
#: A listener that no worker accepts on is looked at a second time, because its release cannot be undone.
_SECOND_LOOK_S = 0.1


class Result(msgspec.Struct, frozen=True):
    """What was found and done.

    ``unused`` are the binds that HAProxy does not accept on, and ``kept_by_others`` the addresses that stay open
    because another owner has them. ``problem`` says what could not be released, ``doubt`` what could not be told.
    """

    unused: list[UnusedBind] = []
    kept_by_others: list[str] = []
    problem: str = ""
    doubt: str = ""


def reconcile(
    invocation: Invocation,
    slots: Sequence[Slot],
    config: Config | None = None,
    master: Master | None = None,
    workers: Sequence[int] = (),
) -> Result:
    """Release the listeners of the instance that are in none of ``slots``, or that no worker accepts on.

    Without a ``config``, the workers are not asked.
    """
    if not invocation.binder:
        return Result()
    unused: list[UnusedBind] = []
    doubt = ""
    if config is not None and master is not None and invocation.fds:
        try:
            unused = _look_twice(master, workers, config, invocation)
        except CannotTell as error:
            doubt = f"whether HAProxy accepts connections on each bind cannot be told, so none is closed: {error}"
    closed = {bind.key for bind in unused}
    try:
        _, kept = sockets.release_others(
            invocation.binder, [slot for slot in slots if slot.key not in closed], invocation.owner
        )
    except MultibinderError as error:
        problem = f"listeners that are not used could not be released: {error}; the next reload does it"
        return Result([_with_outcome(bind, "it stays open for now") for bind in unused], [], problem, doubt)
    addresses = {bind.key: bind.key.partition(" ")[0] for bind in unused}
    return Result(
        [
            _with_outcome(
                bind,
                "it stays open, because another owner has it" if addresses[bind.key] in kept else "the port is closed",
            )
            for bind in unused
        ],
        kept,
        "",
        doubt,
    )


def release_all(invocation: Invocation) -> tuple[list[str], str]:
    """Release all listeners of the instance. Return the addresses that were closed, and what went wrong.

    What was adopted from a server that serves still is left open for it.
    """
    if not invocation.binder:
        return [], ""
    try:
        # A server that was not replaced yet serves on what was adopted from it.
        first_switch.leave(Instance.at(invocation.directory), invocation.binder, invocation.owner)
        closed, _ = sockets.release_others(invocation.binder, [], invocation.owner)
    except MultibinderError as error:
        return [], f"the listeners of {invocation.name} could not be released: {error}"
    return closed, ""


def _with_outcome(bind: UnusedBind, outcome: str) -> UnusedBind:
    return msgspec.structs.replace(bind, why=f"{bind.why}; {outcome}")


def _look_twice(master: Master, workers: Sequence[int], config: Config, invocation: Invocation) -> list[UnusedBind]:
    first = _look(master, workers, config, invocation)
    if not first:
        return []
    time.sleep(_SECOND_LOOK_S)
    second = _look(master, workers, config, invocation)
    return [bind for bind in first if bind in second]


def _look(master: Master, workers: Sequence[int], config: Config, invocation: Invocation) -> list[UnusedBind]:
    deadline = time.monotonic() + _ASK_FOR_S
    while True:
        try:
            return unused_binds(master, workers, config, invocation.fds)
        except CannotTell:
            if time.monotonic() > deadline:
                raise
            time.sleep(_AGAIN_S)
