"""Read the public summary of each instance (docs/instance-summary.md) without asking the binder or the instance."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

import msgspec

from multibinder.kernel.process import is_child, stat_or_none
from multibinder.wire.instance_summary import (
    FILE_NAME,
    VERSION,
    CopyProcess,
    InstanceSummary,
    MasterProcess,
    SourceDirectory,
    SourceFile,
)

#: A summary has about 100 bytes for each file of the configuration. Any user may have written it.
_MAX_BYTES = 16 * 1024 * 1024


class Instance(msgspec.Struct, frozen=True):
    """The present state of one instance. None means unknown; ``why`` is the reason if there is no ``summary``.

    ``driver`` is ``haproxy`` or ``run``: instances of both may have one name.

    ``workers`` and ``old_workers`` count the workers of the summary that are alive: the first serve, the second finish
    their connections; for ``run`` they are copies. ``changed`` is True if a file of the configuration differs from the
    loaded one.
    """

    name: str
    summary: InstanceSummary | None
    why: str = ""
    up: bool | None = None
    workers: int | None = None
    old_workers: int | None = None
    changed: bool | None = None
    driver: str = "haproxy"


_summary = msgspec.json.Decoder(InstanceSummary)


def instances(runtime: str, driver: str = "haproxy") -> list[Instance]:
    """Return all instances in the runtime directory of a driver, by name; none if the directory does not exist.

    An instance whose summary cannot be read has no ``summary``. Raises OSError if the directory cannot be listed.
    """
    try:
        names = sorted(os.listdir(runtime))
    except FileNotFoundError:
        return []
    visible = processes_are_visible()
    found = [_instance(os.path.join(runtime, name), name, visible) for name in names]
    return [msgspec.structs.replace(each, driver=driver) for each in found if each is not None]


def processes_are_visible() -> bool:
    """Return whether /proc shows other users' processes: with hidepid= (proc(5)) it does not even show PID 1."""
    return stat_or_none(1) is not None


def _instance(directory: str, name: str, visible: bool) -> Instance | None:
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    try:
        summary = _read(os.path.join(directory, FILE_NAME))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return Instance(name, None, f"{directory}/{FILE_NAME}: {(error.strerror or str(error)).lower()}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Instance(name, None, f"{directory}/{FILE_NAME}: not what docs/instance-summary.md describes: {error}")
    if summary.version != VERSION:
        why = f"{directory}/{FILE_NAME}: of version {summary.version}, and only {VERSION} is known here"
        return Instance(name, None, why)
    if not visible:
        return Instance(name, summary, changed=has_changed(summary))
    master = summary.master if summary.state != "stopped" else None
    up = master is not None and _is_alive(master)
    if summary.driver == "run":
        # Copies outlive a 'run' that was killed, and are not its children then.
        ready, finishing = (sum(map(_is_alive, _in_state(summary, state))) for state in ("ready", "stopping"))
        return Instance(name, summary, up=up, workers=ready, old_workers=finishing, changed=has_changed(summary))
    # Without its master, a worker cannot be distinguished from a later process with the same PID.
    parent = master.pid if up and master is not None else 0
    return Instance(
        name,
        summary,
        up=up,
        # After a start, the workers are not in the summary yet, so an empty list does not mean that there are none.
        workers=sum(is_child(pid, parent) for pid in summary.workers) if summary.workers or not up else None,
        old_workers=sum(is_child(pid, parent) for pid in summary.old_workers),
        changed=has_changed(summary),
    )


def _read(path: str) -> InstanceSummary:
    """Read a summary that any user may have written. A FIFO must not block us, nor a huge file fill our memory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise msgspec.DecodeError("no regular file")
        text = file.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise msgspec.DecodeError(f"more than {_MAX_BYTES} bytes")
    return _summary.decode(text)


def _in_state(summary: InstanceSummary, state: str) -> list[CopyProcess]:
    return [copy for copy in summary.copies if copy.state == state]


def _is_alive(process: MasterProcess | CopyProcess) -> bool:
    stat = stat_or_none(process.pid)
    return stat is not None and not stat.has_ended and process.start_ticks in (0, stat.start_ticks)


def has_changed(summary: InstanceSummary) -> bool | None:
    """Return whether a file of the configuration has changed, by stat(2), as docs/instance-summary.md describes.

    Returns None if no change is visible, and a file or directory cannot be read.
    """
    answers = {*map(_source_changed, summary.sources), *map(_directory_changed, summary.directories)}
    return True if True in answers else None if None in answers else False


def _source_changed(source: SourceFile) -> bool | None:
    try:
        now = os.stat(source.path)
    except FileNotFoundError:
        return source.mtime_ns is not None
    except (OSError, ValueError):
        return None
    return (now.st_mtime_ns, now.st_size, now.st_ino) != (source.mtime_ns, source.size, source.inode)


def _directory_changed(directory: SourceDirectory) -> bool | None:
    try:
        names = set(_relevant(os.listdir(directory.path), directory.suffixes))
    except FileNotFoundError:
        names = set()
    except (OSError, ValueError):
        return None
    return names != set(directory.files)


def _relevant(names: Sequence[str], suffixes: Sequence[str]) -> Iterator[str]:
    return (name for name in names if name.endswith(tuple(suffixes)) and not name.startswith("."))
