"""The step from one version to the next: what a rehearsal cannot notice, and the execution of the new code."""

from __future__ import annotations

import os
import resource
from collections.abc import Collection, Iterable, Iterator, Sequence

from multibinder.binder import events, lifeboat
from multibinder.binder.client_state import CLIENTS
from multibinder.binder.inherit import CONTROL, LOCK, RECORDS
from multibinder.binder.listener import Listener
from multibinder.kernel import handover
from multibinder.kernel.listen_fds import FIRST
from multibinder.wire import kinds
from multibinder.wire.errors import MultibinderError

#: Set for the next version by an upgrade. A start has no such variable.
UPGRADED = "MULTIBINDER_UPGRADED"
#: Set for a rehearsal if a policy is in force: then a missing policy file is an error.
POLICY_REQUIRED = "MULTIBINDER_REHEARSAL_POLICY"
#: Set for a rehearsal: as long as LISTEN_FDNAMES will be, so that execve(2) fails now if it would fail then.
_ROOM = "MULTIBINDER_REHEARSAL_ROOM"
#: Words for what a version can hold, beside the names of the kinds.
SHARDS, NETNS = "shards", "netns"
#: What this version can hold.
KNOWN = (*(kind.name for kind in kinds.KINDS), SHARDS, NETNS)
#: A refusal names so many listeners.
_NAMED = 10
#: Descriptors that a start opens beside those that were passed to it.
_RESERVED_DESCRIPTORS = 32

_OUR_NAMES = (CONTROL, LOCK, f"{RECORDS}-{10**9}", CLIENTS, lifeboat.LIFEBOAT)

Named = list[tuple[str, int]]


class UpgradeRefused(MultibinderError):
    """An upgrade cannot succeed; the message says why."""


def rehearsal_environment(names: Sequence[str], *, policy_required: bool) -> dict[str, str]:
    """Return the variables of a rehearsal, if descriptors with these names, and our own, can be passed on now.

    Raises UpgradeRefused if they do not fit into LISTEN_FDNAMES, or into RLIMIT_NOFILE.
    """
    names = [*_OUR_NAMES, *names]
    if (size := handover.names_bytes(names)) > handover.MAX_STRING_BYTES:
        raise UpgradeRefused(
            f"the names of {len(names)} descriptors take {size} bytes, and one string of an environment has at most "
            f"{handover.MAX_STRING_BYTES} (MAX_ARG_STRLEN, execve(2)); release listeners first"
        )
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FIRST + len(names) + _RESERVED_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UpgradeRefused(
            f"RLIMIT_NOFILE has been lowered to {hard}, and the new version needs {needed} descriptors; raise it with "
            f"'prlimit --pid {os.getpid()} --nofile={needed}:{needed}'"
        )
    variables = {_ROOM: "x" * sum(len(name) + 1 for name in names)}
    return {**variables, POLICY_REQUIRED: "1"} if policy_required else variables


def require_known(listeners: Iterable[Listener], known: Collection[str], version: str) -> None:
    """Raise UpgradeRefused if the next version, which can hold what ``known`` names, would lose a listener."""
    lost = [each for each in listeners if not {*_needs(each)} <= {*known}]
    if not lost:
        return
    named = ", ".join(str(each.key) for each in lost[:_NAMED]) + (", …" if len(lost) > _NAMED else "")
    missing = sorted({word for each in lost for word in _needs(each)} - {*known})
    raise UpgradeRefused(
        f"version {version} does not know {', '.join(missing)}, and would lose {len(lost)} of the listeners: {named}; "
        "release them first"
    )


def _needs(listener: Listener) -> Iterator[str]:
    yield listener.kind.name
    if listener.shard:
        yield SHARDS
    if listener.netns:
        yield NETNS


def execute(command: Sequence[str], version: str, descriptors: Named, socket_path: str) -> tuple[Named, str]:
    """Execute the next version with these descriptors.

    Return only if the running version has to go on: the descriptors, and why. That may be in another process, the
    lifeboat, when the new version ended before it served. Then this version counts as started anew.
    """
    passed, variables = descriptors, {**os.environ, UPGRADED: "1"}
    boat = None
    if not lifeboat.is_kept(os.environ):
        try:
            boat = lifeboat.launch(socket_path)
        except OSError as error:
            why = f"no process can be forked that would take over if the new version fails: {error.strerror}"
            return descriptors, _go_on(why, version)
        if boat is None:
            why = f"the new version ended before it served; process {os.getpid()} goes on"
            return descriptors, _go_on(why, version)
        passed = [*descriptors, (lifeboat.LIFEBOAT, boat.pipe)]
        variables[lifeboat.PIDS] = f"{os.environ.get(lifeboat.PIDS, '')} {boat.pid}"
    back, failure = handover.execute(command, passed, variables)
    if boat is not None:
        lifeboat.dismiss(back.pop()[1])
        os.environ[lifeboat.PIDS] = variables[lifeboat.PIDS]
    os.environ[UPGRADED] = "1"
    return back, _go_on(f"the new version cannot be executed: {failure.strerror}", version)


def _go_on(why: str, version: str) -> str:
    events.error("upgrade-failed", why=why, pid=os.getpid(), done=f"version {version} goes on")
    return why
