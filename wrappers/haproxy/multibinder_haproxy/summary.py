"""``RUNTIME/NAME/summary.json``: what everybody may know of an instance. Its contract: docs/instance-summary.md.

The other files of that directory hold passwords and are private; so may be HAProxy's messages, which quote
configuration lines. So no text of a template, a configuration or a message gets in here: only names, numbers and times.

Whoever changes what it tells writes it: ``run``, the re-exec, ``reload``, ``settle``, ``stop``. Each takes what is
there, changes its part and replaces the file (rename(2)), under a lock of its own, because a signal can start a re-exec
while ``reload`` is at work. Nothing here raises: monitoring must never cost anybody a reload.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator

import msgspec
from msgspec.structs import replace

from multibinder_haproxy.config.sources import Directory
from multibinder_haproxy.errors import BindRefused, ConfigRefused, TemplateFailure, WrapperError
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.log import say
from multibinder_haproxy.master import Processes, start_ticks_of

FILE_NAME = "summary.json"
VERSION = 1
#: For the lock. Who holds it needs milliseconds; a reload does not wait for one that was stopped in the middle.
_LOCK_WAIT_S, _LOCK_PAUSE_S = 0.5, 0.01


class MasterProcess(msgspec.Struct, frozen=True):
    """``start_ticks``: field 22 of proc_pid_stat(5). With it a PID is that process, and not a later one."""

    pid: int
    start_ticks: int


class SourceFile(msgspec.Struct, frozen=True):
    """An Origin without its digest."""

    path: str
    mtime_ns: int | None
    size: int
    inode: int


class Summary(msgspec.Struct, frozen=True):
    """See docs/instance-summary.md."""

    name: str
    version: int = VERSION
    state: str = "stopped"
    master: MasterProcess | None = None
    generation: int = 0
    fallback: bool = False
    written: float = 0.0
    started: float | None = None
    last_load: float | None = None
    last_success: float | None = None
    last_failure: float | None = None
    last_failure_phase: str | None = None
    starts_total: int = 0
    reloads_total: int = 0
    failures_total: int = 0
    workers: list[int] = []
    old_workers: list[int] = []
    binds: list[str] = []
    sources: list[SourceFile] = []
    directories: list[Directory] = []


def read(instance: Instance) -> Summary | None:
    """None where there is none that can be used."""
    try:
        with open(os.path.join(instance.directory, FILE_NAME), "rb") as file:
            summary = msgspec.json.decode(file.read(), type=Summary)
    except (OSError, msgspec.DecodeError):
        return None
    return summary if summary.version == VERSION else None


def started(instance: Instance, failure: Exception | None) -> None:
    """This process is about to become HAProxy; because of ``failure`` with the last good configuration, if so."""
    now = time.time()
    ticks = start_ticks_of(os.getpid())

    def change(before: Summary) -> Summary:
        after = replace(
            _with_loaded(before, instance),
            state="running",
            master=MasterProcess(os.getpid(), ticks),
            fallback=failure is not None,
            started=now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")),
            last_success=before.last_success if failure else now,
            starts_total=before.starts_total + 1,
            workers=[],
            old_workers=[],
        )
        return _with_failure(after, failure) if failure else after

    _change(instance, change)


def start_failed(instance: Instance, failure: Exception) -> None:
    """HAProxy is not started at all."""
    _change(
        instance, lambda before: _with_failure(replace(_gone(before), starts_total=before.starts_total + 1), failure)
    )


def reload_began(instance: Instance, old_workers: list[int], failure: Exception | None = None) -> None:
    """HAProxy's master has re-executed itself, and is this process; because of ``failure`` it gets the last good
    configuration, if so."""

    def change(before: Summary) -> Summary:
        after = replace(
            _with_loaded(before, instance),
            state="reloading",
            master=MasterProcess(os.getpid(), start_ticks_of(os.getpid())),
            fallback=failure is not None,
            reloads_total=before.reloads_total + 1,
            workers=[],
            old_workers=old_workers,
        )
        return _with_failure(after, failure) if failure else after

    _change(instance, change)


def reload_ended(instance: Instance, workers: list[int], processes: Processes | None) -> None:
    """``workers`` came up with what was loaded, be it what the templates say or the last good configuration."""

    def change(before: Summary) -> Summary:
        after = _with_loaded(before, instance)
        old = processes.draining if processes else before.old_workers
        return replace(
            after,
            state="running",
            last_success=before.last_success if after.fallback else time.time(),
            workers=workers,
            old_workers=[pid for pid in old if pid not in workers],
        )

    _change(instance, change)


def reload_failed(instance: Instance, failure: Exception, processes: Processes | None) -> None:
    """HAProxy did not come up with what it was given: an older worker serves on."""

    def change(before: Summary) -> Summary:
        after = replace(before, state="running", fallback=True)
        if processes is not None:
            after = replace(after, workers=processes.serving, old_workers=processes.draining)
        if before.state != "reloading":  # a re-exec that was not ours: the wrapper is broken, or gone
            after = replace(after, reloads_total=before.reloads_total + 1)
        elif before.fallback:  # counted when it fell back
            return after
        return _with_failure(after, failure)

    _change(instance, change)


def reload_unseen(instance: Instance, failure: Exception) -> None:
    """Nobody knows how it ended: the new worker may come up yet, or the master is gone. It stays ``reloading``."""
    _change(instance, lambda before: before if before.fallback else _with_failure(before, failure))


def reload_refused(instance: Instance, failure: Exception) -> None:
    """A reload that HAProxy was not told of: what runs is what ran."""
    _change(instance, lambda before: _with_failure(replace(before, reloads_total=before.reloads_total + 1), failure))


def stopping(instance: Instance) -> None:
    _change(instance, lambda before: replace(before, state="stopping"))


def stopped(instance: Instance) -> None:
    _change(instance, _gone)


def _gone(before: Summary) -> Summary:
    return replace(before, state="stopped", master=None, fallback=False, workers=[], old_workers=[])


def _with_loaded(before: Summary, instance: Instance) -> Summary:
    loaded = instance.read_loaded()
    if loaded is None:
        return before
    origins = loaded.config.origins
    return replace(
        before,
        generation=loaded.generation,
        fallback=loaded.fallback is not None,
        last_load=loaded.at,
        binds=[slot.key for slot in loaded.config.slots],
        sources=[SourceFile(each.path, each.mtime_ns, each.size, each.inode) for each in origins.files],
        directories=origins.directories,
    )


def _with_failure(before: Summary, failure: Exception) -> Summary:
    return replace(
        before,
        last_failure=time.time(),
        last_failure_phase=phase_of(failure),
        failures_total=before.failures_total + 1,
    )


def phase_of(failure: Exception) -> str:
    """How far it got: ``template`` (rendering), ``binds`` (the binder), ``check`` (haproxy -c), ``load`` (beyond)."""
    for kind, phase in ((TemplateFailure, "template"), (BindRefused, "binds"), (ConfigRefused, "check")):
        if isinstance(failure, kind):
            return phase
    return "load"


_complained_of: set[str] = set()


def _change(instance: Instance, change: Callable[[Summary], Summary]) -> None:
    path = os.path.join(instance.directory, FILE_NAME)
    try:
        with _locked(instance.directory):
            after = change(read(instance) or Summary(instance.name))
            _write(instance.directory, replace(after, name=instance.name, written=time.time()))
    except (OSError, WrapperError, ValueError, msgspec.MsgspecError) as error:
        if path not in _complained_of:
            _complained_of.add(path)
            reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
            say("warning", instance.name, f"{path}: cannot write: {reason}; monitoring sees what was there before")


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Only who may list the directory can take it. Goes on without after a moment: one count may be lost then."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_LOCK_PAUSE_S)
        yield
    finally:
        os.close(descriptor)


def _write(directory: str, summary: Summary) -> None:
    path = os.path.join(directory, FILE_NAME)
    draft = f"{path}.{os.getpid()}.new"
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.encode(summary) + b"\n")
            file.flush()
            # Whatever the umask: who may read it is a matter of the directories above.
            os.fchmod(descriptor, 0o644)
        os.rename(draft, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
