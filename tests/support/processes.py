"""Read facts about processes from /proc: proc(5)."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path


def descriptors(pid: int | str = "self") -> dict[int, str]:
    """Return the open descriptors of a process with their targets, without the one that this function opens."""
    found = {}
    directory = Path(f"/proc/{pid}/fd")
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(directory / name)
    return found


@contextlib.contextmanager
def descriptors_unchanged() -> Iterator[None]:
    """Fail if the block leaves a descriptor open in this process, or closes one that it does not own."""
    gc.collect()  # else the garbage of an earlier test may be collected in the block
    before = descriptors()
    yield
    # A thread of the test, such as a server, may not have closed its descriptors yet.
    deadline = time.monotonic() + 2
    while descriptors() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert descriptors() == before


def is_alive(pid: int) -> bool:
    """Return whether the process runs. A zombie does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    """Return the children of the main thread of the process, also zombies: proc_pid_task_children(5)."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
