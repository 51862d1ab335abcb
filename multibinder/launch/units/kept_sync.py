"""What a unit's server has opened and closed by itself, compared with what the binder keeps for it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection

from multibinder.kernel import process
from multibinder.kernel.descriptors import sockets_of
from multibinder.launch.units.kept import held
from multibinder.wire import kinds
from multibinder.wire.client import Client
from multibinder.wire.status import ListenerStatus, OwnerStatus

#: The time for nginx to begin its reload, and for a server without a readiness message to open its first listener.
_RELOAD_S, _OPENED_S = 5.0, 10.0
#: A server that has opened and closed no listener for this time is taken to be ready.
_QUIET_S = 0.5
_LOOK_S = 0.05
_STARTERS = (b"unit-start",)
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def wait_for_reload(main_pid: int, began_us: int) -> None:
    """Wait until nginx has new workers: then it has opened and closed what its configuration says.

    It parses its configuration after 'nginx -s reload' has returned. Any other program is not waited for. ``began_us``
    is the time when systemd began the reload (CLOCK_MONOTONIC, as StateChangeTimestampMonotonic=).
    """
    if process.name_of(main_pid) != "nginx":
        return
    slept_s = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    since = int((began_us / 1e6 + slept_s) * _TICKS_PER_S)  # proc_pid_stat(5), starttime
    deadline = time.monotonic() + _RELOAD_S
    while time.monotonic() < deadline:
        stats = map(process.stat_or_none, process.children_of(main_pid))
        if any(stat is not None and stat.start_ticks >= since for stat in stats):
            return
        time.sleep(_LOOK_S)


def wait_until_open(unit: str) -> bool:
    """Wait until a server that has been started has opened its listeners. Return False if it has opened none.

    It is for a server of which systemd does not know when it is ready (Type=simple, Type=exec): it has opened and
    closed all when nothing has changed for half a second.
    """
    began = changed = time.monotonic()
    seen: set[int] = set()
    while (now := time.monotonic()) < began + _OPENED_S:
        pids = {pid for pid in process.processes_of_unit(unit) if not _is_starter(pid)}
        found = inodes_of(pids) & _listening()
        if found != seen:
            seen, changed = found, now
        if seen and now - changed > _QUIET_S:
            return True
        time.sleep(_LOOK_S)
    return bool(seen)


def not_open_any_more(binder: Client, unit: str) -> list[tuple[ListenerStatus, OwnerStatus]]:
    """Return what the binder keeps for a unit and no process of it has open; nothing if the unit has no process."""
    pids = process.processes_of_unit(unit)
    if not pids:
        return []
    inodes = inodes_of(pids)
    return [(listener, claim) for listener, claim, inode in _with_inodes(binder, unit) if inode not in inodes]


def inodes_of(pids: Collection[int]) -> set[int]:
    """Return the inodes of all sockets of these processes, as far as they can be read."""
    found: set[int] = set()
    for pid in pids:
        try:
            found |= {inode for table in sockets_of(pid) for _, inode in table.sockets}
        except OSError:
            continue  # it has ended
    return found


def _with_inodes(binder: Client, unit: str) -> list[tuple[ListenerStatus, OwnerStatus, int]]:
    inodes = {each.cookie: each.inode for each in binder.status(fresh=False).listeners}
    return [
        (listener, claim, inodes[listener.cookie])
        for listener, claim in held(binder, unit)
        if listener.cookie in inodes
    ]


def _listening() -> set[int]:
    found: set[int] = set()
    for kind in kinds.KINDS:
        with contextlib.suppress(OSError):  # a kernel without VSOCK has no list of them
            found |= kind.ready_inodes()
    return found


def _is_starter(pid: int) -> bool:
    """Return whether a process is a command of ours, or the shell before it."""
    return any(word in process.command_line_of(pid) for word in _STARTERS)
