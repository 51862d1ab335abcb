"""The private records of an instance: which copies run, and the settings with which they came up."""

from __future__ import annotations

import contextlib
import os

import msgspec

from multibinder.launch import records
from multibinder.launch.errors import LaunchError
from multibinder.launch.run.copy import Copy
from multibinder.launch.run.files import LAST_GOOD_FILE
from multibinder.launch.run.settings import ServiceSettings

COPIES_FILE = "copies.json"


class CopyRecord(msgspec.Struct, frozen=True):
    """One copy. ``start_ticks`` distinguishes it from a later process with its PID."""

    pid: int
    start_ticks: int
    generation: int
    index: int
    state: str
    since: float
    ready_by: str = ""


class CopiesRecord(msgspec.Struct, frozen=True):
    """All copies, and the settings of those that serve. ``boot`` is the boot in which the PIDs mean something."""

    boot: str
    generation: int
    settings: ServiceSettings
    copies: list[CopyRecord]


def boot_id() -> str:
    """Return the id of this boot, with the PID namespace in which PIDs are counted."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def record_of(copy: Copy) -> CopyRecord:
    return CopyRecord(copy.pid, copy.start_ticks, copy.generation, copy.index, copy.state, copy.since, copy.ready_by)


def write_copies(directory: str, generation: int, settings: ServiceSettings, copies: list[Copy]) -> None:
    """Replace the record of the copies. Raises LaunchError."""
    record = CopiesRecord(boot_id(), generation, settings, [record_of(copy) for copy in copies])
    records.write_record(os.path.join(directory, COPIES_FILE), record)


def read_copies(directory: str) -> CopiesRecord | None:
    """Return the record of this boot; None without one. Raises LaunchError."""
    record = _read(os.path.join(directory, COPIES_FILE), CopiesRecord)
    return record if record is not None and record.boot == boot_id() else None


def write_last_good(directory: str, settings: ServiceSettings) -> None:
    """Remember settings with which a copy came up. Raises LaunchError."""
    records.write_record(os.path.join(directory, LAST_GOOD_FILE), settings)


def read_last_good(directory: str) -> ServiceSettings | None:
    """Return the settings with which a copy last came up; None without any. Raises LaunchError."""
    return _read(os.path.join(directory, LAST_GOOD_FILE), ServiceSettings)


def _read(path: str, kind: type[records.T]) -> records.T | None:
    try:
        return records.read_record(path, kind)
    except OSError as error:
        raise LaunchError(f"{path}: cannot read: {(error.strerror or str(error)).lower()}") from error
