"""The writer of ``RUNTIME/NAME/summary.json``, the public summary of an instance.

docs/instance-summary.md is its contract, and ``wire/instance_summary.py`` its structure. The other files of the
directory are private, because they hold passwords. A daemon's messages may hold them too, because they quote
configuration lines. Therefore the summary has no text of a template, a configuration or a message: only names, numbers
and times.

Every start, re-exec, reload and stop writes it: it reads the current summary, changes its part, and replaces the file.
The summary has a separate lock, because a signal can start a re-exec while a reload holds the instance's lock. No
method here raises for a summary that cannot be written: monitoring must never cost a reload.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec
from msgspec.structs import replace

from multibinder.kernel import files
from multibinder.kernel.process import TICKS_PER_S, start_ticks_of
from multibinder.launch import lock
from multibinder.launch.errors import LaunchError
from multibinder.launch.log import InstanceLog
from multibinder.wire.instance_summary import (
    FILE_NAME,
    VERSION,
    InstanceSummary,
    MasterProcess,
    SourceDirectory,
    SourceFile,
)

#: A process holds the summary's lock for milliseconds. A reload must not wait for one that is stopped (SIGSTOP).
_LOCK_WAIT_S, _LOCK_PAUSE_S = 0.5, 0.01
#: The umask does not apply: the modes of the directories above decide who may read it.
_MODE = 0o644


class LoadedConfiguration(msgspec.Struct, frozen=True):
    """The facts about the daemon's last configuration for the summary. ``loaded_at`` is in seconds since the epoch."""

    generation: int
    fallback: bool
    loaded_at: float
    binds: Sequence[str]
    sources: Sequence[SourceFile]
    directories: Sequence[SourceDirectory]


class Processes(Protocol):
    """The workers of a daemon as its master lists them: those that serve, and those that drain."""

    @property
    def serving(self) -> list[int]: ...

    @property
    def draining(self) -> list[int]: ...


class SummaryWriter:
    """Writes the summary of one instance. Each event of the instance's life has a method."""

    def __init__(
        self, directory: str, name: str, log: InstanceLog, read_loaded: Callable[[], LoadedConfiguration | None]
    ) -> None:
        """``read_loaded`` reads the daemon's last configuration. It is called while the summary is locked."""
        self._directory = directory
        self._name = name
        self._log = log
        self._read_loaded = read_loaded
        self._has_complained = False

    @property
    def path(self) -> str:
        return os.path.join(self._directory, FILE_NAME)

    def read(self) -> InstanceSummary | None:
        """Read the summary; None if it is missing, damaged, or of another version."""
        try:
            with open(self.path, "rb") as file:
                summary = msgspec.json.decode(file.read(), type=InstanceSummary)
        except (OSError, msgspec.DecodeError):
            return None
        return summary if summary.version == VERSION else None

    def read_or_new(self) -> InstanceSummary:
        """Read the summary, or make one of an instance that was never started."""
        return self.read() or InstanceSummary.of_new_instance(self._name)

    def started(self, generation: int, master: int, failure: Exception | None) -> None:
        """Note that the process ``master`` has become the daemon, with the load of this generation.

        With a ``failure``, it got the last good configuration.
        """
        now = time.time()
        ticks = start_ticks_of(master)

        def change(before: InstanceSummary) -> InstanceSummary:
            after = replace(
                self._with_loaded(before, generation),
                state="running",
                master=MasterProcess(master, ticks),
                fallback=failure is not None,
                started=now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / TICKS_PER_S),
                last_success=before.last_success if failure else now,
                starts_total=before.starts_total + 1,
                workers=[],
                old_workers=[],
            )
            return _with_failure(after, failure) if failure else after

        self._change(change)

    def start_failed(self, failure: Exception) -> None:
        """Note that the daemon is not started."""
        self._change(
            lambda before: _with_failure(replace(_stopped(before), starts_total=before.starts_total + 1), failure)
        )

    def reload_began(
        self, generation: int, master: int, old_workers: list[int], failure: Exception | None = None
    ) -> None:
        """Note that the daemon's master has re-executed itself, and loads the configuration of this generation.

        With a ``failure``, it got the last good configuration.
        """
        process = MasterProcess(master, start_ticks_of(master))

        def change(before: InstanceSummary) -> InstanceSummary:
            # Of loads in quick succession, only the last may be seen. Another process may have seen this one too.
            is_known = before.master == process and before.generation <= generation
            began = generation - before.generation if is_known else 1
            after = replace(
                self._with_loaded(before, generation),
                state="reloading",
                master=process,
                fallback=failure is not None,
                reloads_total=before.reloads_total + began,
                workers=[],
                old_workers=old_workers,
            )
            return _with_failure(after, failure) if failure and began else after

        self._change(change)

    def reload_ended(self, generation: int, workers: list[int], processes: Processes | None) -> None:
        """Note that ``workers`` came up with the configuration of this generation, the current or the last good one."""

        def change(before: InstanceSummary) -> InstanceSummary:
            after = self._with_loaded(before, generation)
            old = processes.draining if processes else before.old_workers
            return replace(
                after,
                state="running",
                last_success=before.last_success if after.fallback else time.time(),
                workers=workers,
                old_workers=[pid for pid in old if pid not in workers],
            )

        self._change(change)

    def reload_failed(self, failure: Exception, processes: Processes | None) -> None:
        """Note that no worker came up with the loaded configuration. An older worker serves on."""

        def change(before: InstanceSummary) -> InstanceSummary:
            after = replace(before, state="running", fallback=True)
            if processes is not None:
                after = replace(after, workers=processes.serving, old_workers=processes.draining)
            if before.state != "reloading":  # the master re-executed itself without a working wrapper
                after = replace(after, reloads_total=before.reloads_total + 1)
            elif before.fallback:  # reload_began() has counted this failure
                return after
            return _with_failure(after, failure)

        self._change(change)

    def reload_unseen(self, failure: Exception) -> None:
        """Note that the end of a reload was not seen: the new worker may still come up, or the master is gone."""
        self._change(lambda before: before if before.fallback else _with_failure(before, failure))

    def reload_refused(self, failure: Exception) -> None:
        """Note that a reload failed before the daemon was told of it: the daemon runs unchanged."""
        self._change(lambda before: _with_failure(replace(before, reloads_total=before.reloads_total + 1), failure))

    def ended(self, failure: Exception | None) -> None:
        """Note that the daemon ended during a load; with a ``failure``, unless a program told it to end."""

        def change(before: InstanceSummary) -> InstanceSummary:
            after = _stopped(before)
            return after if failure is None or before.fallback else _with_failure(after, failure)

        self._change(change)

    def stopping(self) -> None:
        self._change(lambda before: replace(before, state="stopping"))

    def stopped(self) -> None:
        self._change(_stopped)

    def _with_loaded(self, before: InstanceSummary, generation: int) -> InstanceSummary:
        """Return the summary with what is recorded of a load. A later load may have replaced that record."""
        loaded = self._read_loaded()
        if loaded is None or loaded.generation != generation:
            return replace(before, generation=generation)
        return replace(
            before,
            generation=generation,
            fallback=loaded.fallback,
            last_load=loaded.loaded_at,
            binds=loaded.binds,
            sources=loaded.sources,
            directories=loaded.directories,
        )

    def _change(self, change: Callable[[InstanceSummary], InstanceSummary]) -> None:
        try:
            with self._locked():
                after = replace(change(self.read_or_new()), name=self._name, written=time.time())
                files.replace(self.path, msgspec.json.encode(after) + b"\n", _MODE)
        except (OSError, LaunchError, ValueError, msgspec.MsgspecError) as error:
            if not self._has_complained:
                self._has_complained = True
                reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
                self._log.write("warning", f"{self.path}: cannot write: {reason}; monitoring sees the previous summary")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the instance's directory, which a process can do only if it may list it.

        Goes on without the lock after ``_LOCK_WAIT_S``. Then one count may be lost.
        """
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            lock.acquire(descriptor, _LOCK_WAIT_S, _LOCK_PAUSE_S)
            yield
        finally:
            os.close(descriptor)


def phase_of(failure: Exception) -> str:
    """Return how far a start or reload got before it failed; ``load`` for errors that are not ours."""
    return failure.phase if isinstance(failure, LaunchError) else LaunchError.phase


def _stopped(before: InstanceSummary) -> InstanceSummary:
    return replace(before, state="stopped", master=None, fallback=False, workers=[], old_workers=[])


def _with_failure(before: InstanceSummary, failure: Exception) -> InstanceSummary:
    return replace(
        before,
        last_failure=time.time(),
        last_failure_phase=phase_of(failure),
        failures_total=before.failures_total + 1,
    )
