"""The end of a load: wait for the new worker, then make records, summary and the binder's listeners agree with it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from multibinder.launch.errors import LaunchError
from multibinder_haproxy import last_good
from multibinder_haproxy.accepting import sentences
from multibinder_haproxy.ending import Ending, recorded_ending
from multibinder_haproxy.errors import FellBack, ReloadFailed
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.invocation import Invocation
from multibinder_haproxy.reconcile import reconcile, release_all
from multibinder_haproxy.records import Loaded, ReloadReport
from multibinder_haproxy.reexec import processes as reexec_processes
from multibinder_haproxy.reexec.load import status_line
from multibinder_haproxy.shared import others_on
from multibinder_haproxy.watch import MasterGone, Watch, watched

#: While the master re-executes itself, it does not answer on its CLI for up to this time.
_MASTER_AWAY_S = 2.0
#: A master that ends everything because its new worker has died (``exit-on-failure``) has ended within this time.
_ENDS_WITHIN_S = 5.0
_FOREVER = float("inf")


def settle(instance: Instance, timeout_s: float, lock: int | None = None, pidfd: int | None = None) -> None:
    """Settle each load that no ``reload`` command waits for: a start, a signal, or a reload on HAProxy's CLI.

    ``lock`` and ``pidfd`` are the instance's lock and a pidfd of HAProxy's master, if this process inherited them.
    Without a lock, it waits for it up to ``timeout_s``. A load has no limit while its master lives. Raises LaunchError.
    """
    instance.check_known()
    if lock is None:
        with instance.locked(timeout_s):
            generation = _settle_all(instance, pidfd)
    else:
        try:
            generation = _settle_all(instance, pidfd)
        finally:
            os.close(lock)
    settle_later_loads(instance, generation)


def settle_later_loads(instance: Instance, generation: int) -> None:
    """Settle loads after the one of ``generation``: they began while this process had the lock, and left it to us.

    Call it without the lock.
    """
    while (loaded := instance.read_loaded()) is not None and not loaded.settled and loaded.generation > generation:
        try:
            with instance.locked(timeout_s=-1):
                generation = _settle_all(instance, None)
        except LaunchError:
            return  # another process has the lock, and does the same


def judge_earlier_start(instance: Instance, invocation: Invocation) -> None:
    """Judge the last load, if it ended together with the process that should have settled it. Raises LaunchError.

    systemd kills that process with HAProxy (KillMode=mixed). ``invocation`` is that of the start that begins now.
    """
    loaded = instance.read_loaded()
    if loaded is None or loaded.settled or loaded.came_up or loaded.identity is None:
        return
    here = reexec_processes.identity_of(os.getpid())
    if here is None or (here["boot"], here["machine"]) != (loaded.identity.boot, loaded.identity.machine):
        return  # nothing is known about what happened before the boot, or on another machine
    ending = recorded_ending(instance.directory, loaded.at)
    recorded = msgspec.structs.replace(instance.read_invocation(), state_directory=invocation.state_directory)
    reason = f"HAProxy {ending.words} before a worker answered"
    if _judge(recorded, loaded, ending, reason):
        instance.log.write("warning", f"at the last start, {reason}")


def summarize_begin(instance: Instance, loaded: Loaded) -> None:
    """Note in the summary that HAProxy was given a configuration. The re-exec and an unchanged start leave it to us."""
    failure = FellBack(loaded.fallback, loaded.fallback_phase) if loaded.fallback else None
    if loaded.old_workers:
        instance.summary.reload_began(loaded.generation, loaded.master, loaded.old_workers, failure)
    else:
        instance.summary.started(loaded.generation, loaded.master, failure)


class Load:
    """One load of a configuration by HAProxy, until its end is seen. The instance is locked meanwhile.

    The methods return the finished report of the load.
    """

    def __init__(
        self, instance: Instance, watch: Watch, draft: ReloadReport, generation: int, lock: int | None = None
    ) -> None:
        """``draft`` is the unfinished report, ``generation`` that of the load before this one.

        ``lock`` is the descriptor of the instance's lock, for a load that is left to ``settle``.
        """
        self._instance = instance
        self._watch = watch
        self._draft = draft
        self._generation = generation
        self._lock = lock
        self._invocation = instance.read_invocation()
        self._loaded: Loaded | None = None
        self._seen: tuple[int, int] = (0, 0)

    def conclude(self, old_workers: Collection[int], timeout_s: float = _FOREVER) -> ReloadReport:
        """Wait for the new worker. Then make records, summary and the binder's listeners agree with the result."""
        deadline = time.monotonic() + timeout_s
        try:
            workers = self._watch.await_worker(old_workers, deadline, self._look)
            while self._loaded is not None and {*workers} & {*self._loaded.old_workers}:
                # Another load has begun meanwhile, and replaces those workers.
                workers = self._watch.await_worker(self._loaded.old_workers, deadline, self._look)
        except ReloadFailed as error:
            return self.fail(error)
        except MasterGone:
            return self._died()
        except TimeoutError as error:
            return self._unseen(error, timeout_s)
        return self._succeed(workers)

    def fail(self, error: ReloadFailed) -> ReloadReport:
        """Note that HAProxy gave up. An old worker may serve the last good configuration."""
        serving = self._watch.master.answering_workers()
        # HAProxy up to 3.0 may be about to end all workers and itself.
        if not serving and self._watch.await_end(_ENDS_WITHIN_S):
            return self._died()
        self._look()
        self._instance.summary.reload_failed(error, self._watch.processes(_MASTER_AWAY_S))
        problem = ""
        if self._loaded is not None:
            _judge(self._invocation, self._loaded, None, f"HAProxy did not load it: {error}")
            good = last_good.read(self._invocation)
            if good is not None and serving:
                # No worker accepts on a listener that only the failed configuration binds.
                problem = reconcile(self._invocation, good.config.slots).problem
            self._write_loaded(settled=not problem)
        return self._draft.ended(message=str(error), serving=serving, clients_wait=bool(self._invocation.binder))

    def _died(self) -> ReloadReport:
        """Note that HAProxy's master ended, and with it all workers."""
        self._look()
        ending = self._watch.ending()
        what = f"HAProxy {ending.words} before a worker answered; its log says more"
        failure = ReloadFailed(what)
        closed: list[str] = []
        if self._loaded is None:
            # The master ended before it executed itself.
            self._instance.summary.ended(failure)
            return self._draft.ended(message=what, serving=[], clients_wait=bool(self._invocation.binder))
        is_start = not self._loaded.old_workers
        now = self._instance.read_loaded()
        if is_start and now is not None and now.came_up:
            # It served, and ended before we saw it. After a crash clients wait for the restart.
            return self._draft.ended(message=f"HAProxy {ending.words}", serving=[])
        condemned = _judge(self._invocation, self._loaded, ending, what)
        self._instance.summary.ended(None if is_start and ending.was_told else failure)
        problem = ""
        if is_start and not self._invocation.keep_listeners:
            # A service that never came up would make its clients wait for ever.
            closed, problem = release_all(self._invocation)
        self._write_loaded(settled=not problem)
        said = [what, *_advice(condemned), *([f"closed {', '.join(closed)}"] if closed else []), problem]
        message = "\n".join(filter(None, said))
        if is_start:
            self._instance.log.write("warning" if ending.was_told else "error", message)
        return self._draft.ended(message=message, serving=[], clients_wait=bool(self._invocation.binder) and not closed)

    def _unseen(self, error: TimeoutError, timeout_s: float) -> ReloadReport:
        """Note that the load has not ended in time. The new worker may still come up: ``settle`` waits for it."""
        self._instance.summary.reload_unseen(error)
        later = "HAProxy's log says what it is doing"
        if self._lock is not None and _start_settle(self._instance, self._invocation, self._lock):
            later = f"'multibinder-haproxy status {self._instance.name}' will tell the end; {later}"
        return self._draft.ended(
            message=f"no new worker answered within {timeout_s:g} s; {later}",
            serving=self._watch.master.answering_workers(),
            clients_wait=bool(self._invocation.binder),
        )

    def _succeed(self, new_workers: list[int]) -> ReloadReport:
        self._instance.summary.reload_ended(self._generation, new_workers, self._watch.processes(_MASTER_AWAY_S))
        loaded = self._loaded
        if loaded is None:
            # HAProxy executed itself without us, or with the files as they were. A listener that only the new ones bind
            # may have been asked for.
            if (present := self._instance.read_loaded()) is not None:
                reconcile(self._invocation, present.config.slots)
            return self._draft.ended(ok=True, new_workers=new_workers, generation=self._generation)
        good = last_good.read(self._invocation)
        before = [slot.key for slot in good.config.slots] if good else []
        after = [slot.key for slot in loaded.config.slots]
        problems = []
        if loaded.fallback is None:
            try:
                last_good.promote(self._invocation, loaded.config)
            except LaunchError as error:
                problems.append(f"this configuration is not remembered as the last good one: {error}")
        self._invocation = self._instance.read_invocation()  # with the descriptors of this load
        result = reconcile(self._invocation, loaded.config.slots, loaded.config, self._watch.master, new_workers)
        self._write_loaded(settled=not result.problem, came_up=True, unused=[*loaded.config.unused, *result.unused])
        self._instance.log.set_status(status_line(loaded.fallback))
        fallback = f"{loaded.fallback}\nHAProxy runs with the last good configuration" if loaded.fallback else ""
        return self._draft.ended(
            ok=loaded.fallback is None,
            message=fallback or "\n".join([*problems, *filter(None, [result.problem, result.doubt])]),
            generation=loaded.generation,
            added=[key for key in after if key not in before],
            kept=[key for key in after if key in before],
            dropped=[key for key in before if key not in after],
            kept_by_others=result.kept_by_others,
            new_workers=new_workers,
            serving=new_workers if fallback else None,
            unused=result.unused,
        )

    def _look(self) -> None:
        """Notice that the re-exec has written the record of this load, or of a later one."""
        with contextlib.suppress(OSError):
            status = os.stat(self._instance.loaded_path)
            if (status.st_ino, status.st_mtime_ns) == self._seen:
                return
            self._seen = (status.st_ino, status.st_mtime_ns)
        loaded = self._instance.read_loaded()
        if loaded is not None and loaded.generation > self._generation:
            self._generation = loaded.generation
            self._loaded = loaded
            summarize_begin(self._instance, loaded)

    def _write_loaded(self, **changes: Any) -> None:
        """Change the record of this load, unless a later load has replaced it."""
        now = self._instance.read_loaded()
        if now is not None and now.generation == self._generation:
            self._instance.write_loaded(msgspec.structs.replace(now, **changes))


def _settle_all(instance: Instance, pidfd: int | None) -> int:
    """Settle the last load, and those that begin meanwhile; return the generation of the last. Takes over ``pidfd``."""
    generation = 0
    while (loaded := instance.read_loaded()) is not None and not loaded.settled and loaded.generation > generation:
        generation = loaded.generation
        with watched(instance.master(), loaded.identity, loaded.master, pidfd) as watch:
            load = Load(instance, watch, ReloadReport.begin(), generation - 1)
            report = load.conclude(loaded.old_workers)
        pidfd = None
        if loaded.old_workers:
            instance.write_report(report)
        warnings = [*sentences(report.unused), *([report.message] if report.ok and report.message else [])]
        if report.new_workers:
            invocation = instance.read_invocation()
            warnings += others_on(invocation.binder, loaded.config.slots, invocation.owner)
        for sentence in warnings:
            instance.log.write("warning", sentence)
    return generation


def _judge(invocation: Invocation, loaded: Loaded, ending: Ending | None, reason: str) -> bool:
    """Condemn the configuration of a load that failed, and return whether the next start will not try it.

    ``ending`` is that of HAProxy's master; None if it lives. An end that HAProxy was told to make condemns nothing, and
    neither does a failure of the last good configuration.
    """
    if loaded.fallback is not None or (ending is not None and ending.was_told):
        return False
    good = last_good.read(invocation)
    if good is not None and loaded.config.same_as(good.config):
        return False
    last_good.condemn(invocation, loaded, reason)
    return good is not None


def _advice(condemned: bool) -> Sequence[str]:
    if not condemned:
        return []
    return ["the next start uses the last good configuration, unless the present one is changed"]


def _start_settle(instance: Instance, invocation: Invocation, lock: int) -> bool:
    """Let another process wait for the end of the load. It inherits the lock."""
    command = [invocation.command_path or invocation.wrapper, "settle", "--runtime-dir", instance.runtime_directory]
    try:
        subprocess.Popen(  # noqa: S603
            [*command, "--lock-fd", str(lock), instance.name],
            pass_fds=[lock],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return False
    return True
