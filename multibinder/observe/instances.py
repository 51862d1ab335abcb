"""HAProxy instances, as the public file of each tells (docs/instance-summary.md). Asks neither binder nor HAProxy."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

import msgspec

from multibinder.kernel.process import is_child, stat_or_none

_SUMMARY = "summary.json"
_VERSION = 1
#: A summary has some 100 bytes for each file that the configuration came from. Its writer need not be root.
_MAX_BYTES = 16 * 1024 * 1024


class Master(msgspec.Struct, frozen=True):
    pid: int
    start_ticks: int


class Source(msgspec.Struct, frozen=True):
    """A file as it was just before it was read; ``mtime_ns`` is None where there was none."""

    path: str
    mtime_ns: int | None
    size: int
    inode: int


class Directory(msgspec.Struct, frozen=True):
    path: str
    files: Sequence[str]
    suffixes: Sequence[str]


class Summary(msgspec.Struct, frozen=True):
    """What ``summary.json`` has, as far as it is used here. Times are in seconds since the epoch."""

    version: int
    state: str
    master: Master | None
    generation: int
    fallback: bool
    written: float
    started: float | None
    last_load: float | None
    last_success: float | None
    last_failure: float | None
    starts_total: int
    reloads_total: int
    failures_total: int
    workers: Sequence[int]
    old_workers: Sequence[int]
    binds: Sequence[str]
    sources: Sequence[Source]
    directories: Sequence[Directory]


class Instance(msgspec.Struct, frozen=True):
    """One instance now. What cannot be told is None: ``summary`` with ``why``, ``up``, ``workers``, ``changed``.

    ``workers`` serve and ``old_workers`` finish their connections, of those that the summary names and that still live.
    ``changed``: a file of the configuration is not as it was when it was loaded.
    """

    name: str
    summary: Summary | None
    why: str = ""
    up: bool | None = None
    workers: int | None = None
    old_workers: int | None = None
    changed: bool | None = None


_summary = msgspec.json.Decoder(Summary)


def instances(runtime: str) -> list[Instance]:
    """All below a runtime directory, by name; none where there is no such directory. Raises OSError if it cannot be
    listed. An instance whose summary cannot be read is one without ``summary``."""
    try:
        names = sorted(os.listdir(runtime))
    except FileNotFoundError:
        return []
    visible = processes_are_visible()
    return [found for name in names if (found := _instance(os.path.join(runtime, name), name, visible)) is not None]


def processes_are_visible() -> bool:
    """Whether /proc shows other users' processes: with hidepid= (proc(5)) not even PID 1."""
    return stat_or_none(1) is not None


def _instance(directory: str, name: str, visible: bool) -> Instance | None:
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    try:
        summary = _read(os.path.join(directory, _SUMMARY))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return Instance(name, None, f"{directory}/{_SUMMARY}: {(error.strerror or str(error)).lower()}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Instance(name, None, f"{directory}/{_SUMMARY}: not what docs/instance-summary.md describes: {error}")
    if summary.version != _VERSION:
        why = f"{directory}/{_SUMMARY}: of version {summary.version}, and only {_VERSION} is known here"
        return Instance(name, None, why)
    if not visible:
        return Instance(name, summary, changed=has_changed(summary))
    master = summary.master if summary.state != "stopped" else None
    up = master is not None and _is_alive(master)
    # Without its master no worker of it is left that we could tell from a stranger with its number.
    parent = master.pid if up and master is not None else 0
    return Instance(
        name,
        summary,
        up=up,
        # After a start nobody has seen them yet: none named is not none there.
        workers=sum(is_child(pid, parent) for pid in summary.workers) if summary.workers or not up else None,
        old_workers=sum(is_child(pid, parent) for pid in summary.old_workers),
        changed=has_changed(summary),
    )


def _read(path: str) -> Summary:
    """The writer may be any user: what is no regular file must not hold us up, and a huge one not fill our memory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise msgspec.DecodeError("no regular file")
        text = file.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise msgspec.DecodeError(f"more than {_MAX_BYTES} bytes")
    return _summary.decode(text)


def _is_alive(master: Master) -> bool:
    stat = stat_or_none(master.pid)
    return stat is not None and not stat.has_ended and master.start_ticks in (0, stat.start_ticks)


def has_changed(summary: Summary) -> bool | None:
    """By stat(2), as docs/instance-summary.md says. A change that is seen counts, whatever cannot be seen; else None if
    something cannot."""
    answers = {*map(_source_changed, summary.sources), *map(_directory_changed, summary.directories)}
    return True if True in answers else None if None in answers else False


def _source_changed(source: Source) -> bool | None:
    try:
        now = os.stat(source.path)
    except FileNotFoundError:
        return source.mtime_ns is not None
    except (OSError, ValueError):
        return None
    return (now.st_mtime_ns, now.st_size, now.st_ino) != (source.mtime_ns, source.size, source.inode)


def _directory_changed(directory: Directory) -> bool | None:
    try:
        names = set(_that_count(os.listdir(directory.path), directory.suffixes))
    except FileNotFoundError:
        names = set()
    except (OSError, ValueError):
        return None
    return names != set(directory.files)


def _that_count(names: Sequence[str], suffixes: Sequence[str]) -> Iterator[str]:
    return (name for name in names if name.endswith(tuple(suffixes)) and not name.startswith("."))
