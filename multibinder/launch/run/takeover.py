"""Take over the copies of a ``run`` that was killed: they live on, and serve."""

from __future__ import annotations

import contextlib
import os
import re
import time

from multibinder.kernel.process import TICKS_PER_S, environment_of, stat_or_none
from multibinder.launch.run.children import Children
from multibinder.launch.run.copy import Copy
from multibinder.launch.run.output import Output
from multibinder.launch.run.preparation import OWN_PID
from multibinder.launch.run.records import CopiesRecord, CopyRecord
from multibinder.launch.run.starter import Surroundings

_PIPE = re.compile(r"pipe:\[\d+\]")


def take_over(record: CopiesRecord, children: Children, around: Surroundings) -> list[Copy]:
    """Return the copies of the record that live."""
    found = [_take_over(each, record, children, around) for each in record.copies]
    return [copy for copy in found if copy is not None]


def unrecorded(record: CopiesRecord, notify_path: str) -> list[CopyRecord]:
    """Return the copies that live, and are not in the record.

    The disk was full, or ``run`` was killed before it had written. A copy is told its own PID and the path of
    notify.sock, so that no process that it has started is taken for one.
    """
    known = {each.pid for each in record.copies}
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        pid = int(name)
        with contextlib.suppress(OSError, ValueError):
            variables = environment_of(pid)
            if pid in known or (variables.get(OWN_PID), variables.get("NOTIFY_SOCKET")) != (name, notify_path):
                continue
            stat = stat_or_none(pid)
            if stat is None or stat.has_ended:
                continue
            age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - stat.start_ticks / TICKS_PER_S
            generation, index = int(variables["MULTIBINDER_GENERATION"]), int(variables["MULTIBINDER_INDEX"])
            found.append(CopyRecord(pid, stat.start_ticks, generation, index, "ready", time.time() - age_s))
    return found


def _take_over(each: CopyRecord, record: CopiesRecord, children: Children, around: Surroundings) -> Copy | None:
    try:
        pidfd = os.pidfd_open(each.pid)
    except OSError:
        return None  # it has ended
    stat = stat_or_none(each.pid)
    if stat is None or stat.has_ended or stat.start_ticks != each.start_ticks:
        os.close(pidfd)
        return None
    process = children.taken_over(each.pid, pidfd)
    output = Output(_open_output(each.pid), f"{around.name}[g{each.generation} {each.pid}]: ", around.write)
    copy = Copy(process, each.generation, each.index, record.settings, output)
    copy.since, copy.ready_by, copy.state = each.since, each.ready_by, each.state
    return copy


def _open_output(pid: int) -> int:
    """Return the reading end of the pipe that is the stdout of a process, or one that has ended."""
    path = f"/proc/{pid}/fd/1"
    try:
        if _PIPE.fullmatch(os.readlink(path)):
            return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        pass  # another user's process, or it has closed its stdout
    reading, writing = os.pipe()
    os.close(writing)
    return reading
