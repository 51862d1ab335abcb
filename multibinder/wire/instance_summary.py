"""The structure of an instance's ``summary.json``, as docs/instance-summary.md describes it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

#: Below the directory of the instance.
FILE_NAME = "summary.json"
#: Of the structure: fields may be added, a change of what is here raises it.
VERSION = 1


class MasterProcess(msgspec.Struct, frozen=True):
    """The master of an instance. A PID and ``start_ticks``, field 22 of proc_pid_stat(5), name one process for ever."""

    pid: int
    start_ticks: int


class SourceFile(msgspec.Struct, frozen=True):
    """A file as it was just before it was read; ``mtime_ns`` is None if it did not exist."""

    path: str
    mtime_ns: int | None
    size: int
    inode: int


class SourceDirectory(msgspec.Struct, frozen=True):
    """A directory of the command line: the names of its ``files`` that end in one of ``suffixes``."""

    path: str
    files: Sequence[str]
    suffixes: Sequence[str]


class InstanceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What every user may know of an instance. Times are in seconds since the epoch."""

    name: str = ""
    version: int
    state: str
    master: MasterProcess | None
    generation: int
    fallback: bool
    written: float
    started: float | None
    last_load: float | None
    last_success: float | None
    last_failure: float | None
    last_failure_phase: str | None = None
    starts_total: int
    reloads_total: int
    failures_total: int
    workers: Sequence[int]
    old_workers: Sequence[int]
    binds: Sequence[str]
    sources: Sequence[SourceFile]
    directories: Sequence[SourceDirectory]

    @staticmethod
    def of_new_instance(name: str) -> InstanceSummary:
        """Return the summary of an instance that has never been started."""
        return InstanceSummary(
            name=name,
            version=VERSION,
            state="stopped",
            master=None,
            generation=0,
            fallback=False,
            written=0.0,
            started=None,
            last_load=None,
            last_success=None,
            last_failure=None,
            starts_total=0,
            reloads_total=0,
            failures_total=0,
            workers=[],
            old_workers=[],
            binds=[],
            sources=[],
            directories=[],
        )
