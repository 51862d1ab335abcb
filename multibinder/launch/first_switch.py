"""The first switch: take over the listeners of a server that has opened them itself, and end it once ours is ready.

The server goes on meanwhile: the binder and the new server have copies of its sockets. As long as it lives and has not
been told to finish, nothing of ours may shut these sockets down.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Sequence

import msgspec

from multibinder.kernel import process
from multibinder.launch.errors import LaunchError
from multibinder.launch.former import Former, end, formers_of
from multibinder.launch.instance_files import InstanceFiles
from multibinder.launch.log import InstanceLog
from multibinder.launch.switch_record import FILE_NAME, Switch, adopted_from_the_living
from multibinder.wire.addresses import Address
from multibinder.wire.client import Client

#: Looking at the descriptors of all processes of a host takes some seconds at most.
_TIMEOUT_S = 60.0


class _Holder(msgspec.Struct):
    pid: int
    name: str


class _Row(msgspec.Struct):
    """A row of ``multibinder adopt --dry-run --json``."""

    address: str
    state: str
    obstacle: str
    holders: list[_Holder]


def begin(files: InstanceFiles, binder: str, owner: str, addresses: Collection[Address]) -> list[Former]:
    """Adopt those of these addresses on which another server accepts, for ``owner``. Return these servers.

    A switch that was begun before goes on. Raises LaunchError; then nothing was adopted.
    """
    wanted = sorted(set(map(str, addresses)))
    rows = _look(binder, wanted) if wanted else []
    if refused := [row for row in rows if row.obstacle and row.address in wanted]:
        row = refused[0]
        names = ", ".join(f"{holder.name} (pid {holder.pid})" for holder in row.holders)
        raise LaunchError(f"{row.address} cannot be taken over from {names or 'its server'}: {row.obstacle}")
    free = [row for row in rows if row.state == "free"]
    before = files.read_record(FILE_NAME, Switch)
    found = formers_of(holder.pid for row in free for holder in row.holders)
    switch = Switch(
        sorted({row.address for row in free} | {*(before.addresses if before else ())}),
        list(dict.fromkeys([*(each for each in (before.formers if before else ()) if each.is_alive()), *found])),
    )
    if not switch.formers:
        return []
    # Written first: whatever happens from here on, these sockets are the former server's, too.
    files.write_record(FILE_NAME, switch)
    if free:
        _adopt(binder, owner, [row.address for row in free])
    return switch.formers


def leave(files: InstanceFiles, binder: str, owner: str) -> list[str]:
    """Let go of what was adopted from a server that still serves on it. Return these addresses; none without one.

    Raises MultibinderError; then they are held as before.
    """
    addresses = adopted_from_the_living(files)
    if addresses:
        with Client(binder) as client:
            client.release([Address.parse(each) for each in addresses], owner=owner, leave_open=True)
        files.remove_record(FILE_NAME)
    return addresses


def finish(files: InstanceFiles, log: InstanceLog) -> None:
    """End the former servers, now that the new one is ready. Does nothing if no switch has begun.

    Returns when they were told to finish, and in case of nginx when its workers have done so.
    """
    switch = files.read_record(FILE_NAME, Switch)
    if switch is None:
        return
    # Written first: from here on these sockets are ours alone, and may be shut down.
    files.write_record(FILE_NAME, msgspec.structs.replace(switch, told=True))
    for former in switch.formers:
        if not former.is_alive():
            continue
        unit = process.unit_of(former.pid)
        try:
            end(former, None if former.ends_in_steps else 0)
        except OSError as error:
            log.write("error", f"{former} could not be told to finish: {error.strerror}; stop it, it serves as well")
            continue
        log.write("notice", f"{former}, which served before, was told to finish its connections")
        if unit.endswith(".service") and unit != process.unit_of(os.getpid()):
            log.write(
                "warning",
                f"{former} runs in {unit}, which may start it again: 'systemctl disable --now {unit}' once it has "
                f"ended; the next time, 'multibinder systemd takeover {unit}' keeps the unit",
            )
    files.remove_record(FILE_NAME)


def _look(binder: str, addresses: Sequence[str]) -> list[_Row]:
    done = _run(["adopt", "--dry-run", "--json", "--socket", binder, "--", *addresses])
    try:
        # It fails if nobody serves on one of them. The rows are complete all the same.
        return msgspec.json.decode(done.stdout, type=list[_Row])
    except msgspec.DecodeError:
        raise LaunchError(f"cannot look for the server that serves now: {_reason(done)}") from None


def _adopt(binder: str, owner: str, addresses: Sequence[str]) -> None:
    done = _run(["adopt", "--json", "--socket", binder, "--owner", owner, "--", *addresses])
    if done.returncode != 0:
        raise LaunchError(f"{', '.join(addresses)} cannot be taken over: {_reason(done)}")


def _run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of ours in a process of its own: it needs modules that this room does not import."""
    try:
        return subprocess.run(  # noqa: S603
            [sys.executable, "-P", "-m", "multibinder", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"'multibinder adopt' cannot be run: {error}") from error


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.removeprefix("multibinder: ") for line in done.stderr.strip().splitlines()]
    return "; ".join(lines) or f"'multibinder adopt' ended with {done.returncode}"
