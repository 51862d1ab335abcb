"""Take over the copies of a ``run`` that was killed: they live on, and serve."""

from __future__ import annotations

import os
import re

from multibinder.kernel.process import stat_or_none
from multibinder.launch.run.children import Children
from multibinder.launch.run.copy import Copy
from multibinder.launch.run.output import Output
from multibinder.launch.run.records import CopiesRecord, CopyRecord
from multibinder.launch.run.starter import Surroundings

_PIPE = re.compile(r"pipe:\[\d+\]")


def take_over(record: CopiesRecord, children: Children, around: Surroundings) -> list[Copy]:
    """Return the copies of the record that live."""
    found = [_take_over(each, record, children, around) for each in record.copies]
    return [copy for copy in found if copy is not None]


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
