"""Read the state of a process from /proc/PID."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from typing import NamedTuple

#: PF_KTHREAD (linux/sched.h), in the flags of /proc/PID/stat.
_KERNEL_THREAD = 0x00200000
_ENDED = ("Z", "X")
#: The most steps from a process to its ancestors: a PID may be used again while they are read.
_MOST_ANCESTORS = 1000

#: sysconf(_SC_CLK_TCK): ticks a second, the unit of a process's start time.
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Stat(NamedTuple):
    """Fields of /proc/PID/stat (proc_pid_stat(5)).

    ``state`` is one letter. ``start_ticks`` counts clock ticks from boot to the start of the process; execve(2) does
    not change it, and no later process with the same PID has the same.
    """

    state: str
    parent: int
    flags: int
    start_ticks: int

    @property
    def has_ended(self) -> bool:
        """True if the process is a zombie, or is just being removed."""
        return self.state in _ENDED


def stat_of(pid: int) -> Stat:
    """Read the fields of a process. Raises OSError: ProcessLookupError or FileNotFoundError if it is gone."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        # The second field, the name in parentheses, may contain anything; the third one is the first here.
        fields = file.read().rpartition(")")[2].split()
    if len(fields) < 20:
        raise ProcessLookupError(f"/proc/{pid}/stat is empty")
    return Stat(fields[0], int(fields[1]), int(fields[6]), int(fields[19]))


def stat_or_none(pid: int) -> Stat | None:
    """Read the fields of a process; None if it is gone or cannot be read."""
    try:
        return stat_of(pid)
    except (OSError, ValueError):
        return None


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    stat = stat_or_none(pid)
    return stat is not None and not stat.has_ended


def is_child(pid: int, parent: int) -> bool:
    """Return whether ``pid`` is alive and a child of ``parent``."""
    stat = stat_or_none(pid)
    return stat is not None and not stat.has_ended and stat.parent == parent


def parent_of(pid: int) -> int:
    """Return the PID of the parent; 0 if the process is gone, or its parent is in another PID namespace."""
    stat = stat_or_none(pid)
    return stat.parent if stat is not None else 0


def start_ticks_of(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 if it does not exist."""
    stat = stat_or_none(pid)
    return stat.start_ticks if stat is not None else 0


def is_program(pid: int) -> bool:
    """Return whether a process can have descriptors: it is alive, and no kernel thread. True if that is unknown."""
    stat = stat_or_none(pid)
    if stat is None:
        return os.path.exists(f"/proc/{pid}")
    return not stat.has_ended and not stat.flags & _KERNEL_THREAD


def name_of(pid: int) -> str:
    """Return the name of the program (its comm), safe to print; a question mark if the process is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        return printable(file.read().strip()) or "?"
    return "?"


def printable(name: str) -> str:
    """Return ``name`` with a question mark for each character that could control a terminal."""
    return "".join(each if each.isprintable() else "?" for each in name)


def command_line_of(pid: int) -> bytes:
    """Return the current arguments of a process, each with a NUL at its end; empty if they cannot be read."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment of the last execve(2) of a process. Raises OSError, also if permission is denied."""
    with open(f"/proc/{pid}/environ", "rb") as file:
        pairs = (entry.partition(b"=") for entry in file.read().split(b"\0") if entry)
        return {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}


def children_of(pid: int) -> list[int]:
    """Return the children of a process's first thread (proc_pid_task_children(5)); empty if they cannot be read."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def with_descendants(pid: int) -> set[int]:
    """Return this process and all processes below it, as far as they can be read. Any thread may have children."""
    found: set[int] = set()
    to_read = [pid]
    while to_read:
        parent = to_read.pop()
        if parent in found:
            continue
        found.add(parent)
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{parent}/task"):
                with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{thread}/children") as file:
                    to_read += map(int, file.read().split())
    return found


def leader_of(pid: int, leaders: Collection[int]) -> int | None:
    """Return the one of ``leaders`` that leads the session of a process, or is its nearest ancestor; None without one.

    A process that left the session of its ancestor is found as long as no process between them has ended.
    """
    session = 0
    with contextlib.suppress(OSError):
        session = os.getsid(pid)
    if session in leaders:
        return session
    for _ in range(_MOST_ANCESTORS):
        if pid in leaders:
            return pid
        if pid <= 1:
            break
        pid = parent_of(pid)
    return None


def processes_of_unit(unit: str) -> set[int]:
    """Return the processes of a systemd unit, as ``nginx.service``."""
    found = set()
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and unit_of(int(name)) == unit:
                found.add(int(name))
    return found


def uid_of(pid: int) -> int | None:
    """Return the effective user id of a process, or 0 if it is not dumpable (proc(5)); None if it is gone."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def unit_of(pid: int) -> str:
    """Return the systemd unit that a process runs in; empty if it runs in none.

    Raises OSError if the process is gone.
    """
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
        return unit_in(file.read())


def unit_in(cgroups: str) -> str:
    """Return the unit that the text of a /proc/PID/cgroup names (cgroups(7)); empty if there is none.

    The unit is the first part of the path that is no slice. The unit itself names the control groups below
    (systemd.slice(5)), so they are ignored: a process cannot choose its unit by creating a control group.
    """
    for line in cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "name=systemd"):
            continue
        for part in path.split("/"):
            # systemd puts an underscore before a name that is also the name of a cgroup file of the kernel.
            name = part.removeprefix("_")
            if name and not name.endswith(".slice"):
                return name if name.endswith((".service", ".scope")) else ""
    return ""
