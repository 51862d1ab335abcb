"""The structure of ``summary.json``, the public state of an instance (docs/instance-summary.md).

The launcher writes the file. The exporter, the doctor and other monitoring read it; every local user may. An added
field needs a default, because readers also meet files of earlier versions. Fields of later versions are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

#: The name of the file in the directory of the instance.
FILE_NAME = "summary.json"
#: The version of the structure. Added fields do not raise it; a change of an existing field does.
VERSION = 1
#: The name (comm, proc(5)) of a process ``multibinder run``, by which it is told from the copies.
RUN_PROCESS = "multibinder-run"


class MasterProcess(msgspec.Struct, frozen=True):
    """The process that manages an instance's workers.

    ``start_ticks`` is field 22 of proc_pid_stat(5), or 0 if it is unknown. A later process with the same PID has
    another one.
    """

    pid: int
    start_ticks: int


class SourceFile(msgspec.Struct, frozen=True):
    """A file that the loaded configuration came from, as stat(2) described it just before it was read.

    ``mtime_ns`` is None if the file did not exist: an optional include.
    """

    path: str
    mtime_ns: int | None
    size: int
    inode: int


class SourceDirectory(msgspec.Struct, frozen=True):
    """A directory that the loaded configuration came from.

    ``files`` are the names that counted: those that end in one of ``suffixes`` and do not begin with a dot.
    """

    path: str
    files: Sequence[str]
    suffixes: Sequence[str]


class CopyProcess(msgspec.Struct, frozen=True):
    """One copy of the command of a ``run``: its main process. ``start_ticks`` is that of ``MasterProcess``.

    ``state`` is ``starting``, ``ready`` or ``stopping``. A copy outlives a ``run`` that was killed.
    """

    pid: int
    start_ticks: int
    generation: int
    index: int
    state: str


class InstanceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The whole document. Times are in seconds since the epoch; PIDs are those of the instance's PID namespace.

    ``driver`` is ``haproxy`` or ``run``. The five fields after it are those of ``run`` alone, whose ``master`` is the
    process ``multibinder run`` itself. ``activity`` is finer than ``state``. ``wanted`` copies should be ready.
    """

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
    driver: str = "haproxy"
    activity: str = ""
    copies: Sequence[CopyProcess] = ()
    wanted: int = 0
    restarts_total: int = 0
    gave_up: bool = False

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
