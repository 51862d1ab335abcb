"""The end of a load: wait for the new worker, then make records, summary and the binder's listeners agree with it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection
from typing import Any

import msgspec

from multibinder import MultibinderError
from multibinder.kernel.process import is_alive
from multibinder.launch.errors import Unreachable
from multibinder_haproxy import sockets
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.errors import FellBack, ReloadFailed
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.master import Master, Processes
from multibinder_haproxy.records import Loaded, ReloadReport

#: While the master re-executes itself, it does not answer on its CLI for up to this time.
_MASTER_AWAY_S = 2.0


def settle(instance: Instance, timeout_s: float, lock: int | None = None) -> None:
    """Settle a load for which no ``reload`` command waits: a start, a signal, or a reload on HAProxy's CLI.

    ``lock`` is the descriptor of the instance's lock, if this process inherited it. Does nothing if the load is settled
    already. Raises LaunchError.
    """
    instance.check_known()
    with contextlib.nullcontext() if lock is not None else instance.locked(timeout_s):
        loaded = instance.read_loaded()
        if loaded is None or loaded.settled:
            return
        summarize_begin(instance, loaded)
        load = Load(instance, instance.master(), ReloadReport.begin())
        instance.write_report(load.conclude(loaded.master, loaded.old_workers, timeout_s))


def summarize_begin(instance: Instance, loaded: Loaded) -> None:
    """Note in the summary that HAProxy was given a configuration. The re-exec and an unchanged start leave it to us."""
    failure = FellBack(loaded.fallback, loaded.fallback_phase) if loaded.fallback else None
    if loaded.old_workers:
        instance.summary.reload_began(loaded.master, loaded.old_workers, failure)
    else:
        instance.summary.started(loaded.master, failure)


class Load:
    """One load of a configuration by HAProxy, until its end is seen. The instance is locked meanwhile.

    ``draft`` is the unfinished report of the load. The methods return the finished one.
    """

    def __init__(self, instance: Instance, master: Master, draft: ReloadReport) -> None:
        self._instance = instance
        self._master = master
        self._draft = draft

    def conclude(self, master_pid: int, old_workers: Collection[int], timeout_s: float) -> ReloadReport:
        """Wait for the new worker. Then make records, summary and the binder's listeners agree with the result."""
        summary = self._instance.summary
        try:
            workers = self._master.await_new_worker(
                old_workers, time.monotonic() + timeout_s, lambda: is_alive(master_pid)
            )
        except ReloadFailed as error:
            return self.fail(error)
        except Unreachable as error:
            summary.reload_unseen(error)
            return self._draft.ended(message=f"HAProxy's master is gone: {error}", **self._who_serves())
        except TimeoutError as error:
            # The worker may still come up, and needs the listeners that it binds.
            summary.reload_unseen(error)
            return self._draft.ended(
                message=f"no new worker answered within {timeout_s:g} s; HAProxy's log says what it is doing"
            )
        pids = [worker.pid for worker in workers]
        summary.reload_ended(pids, self._processes())
        return self._succeed(pids)

    def fail(self, error: ReloadFailed) -> ReloadReport:
        """Note that HAProxy gave up. The old worker serves the last good configuration.

        No worker accepts on a listener that only the new configuration binds, so it is released.
        """
        self._instance.summary.reload_failed(error, self._processes())
        loaded, good = self._instance.read_loaded(), self._instance.read_last_good()
        if loaded is not None and good is not None:
            _, problem = self._release_others(good.config)
            self._instance.write_loaded(msgspec.structs.replace(loaded, settled=not problem))
        return self._draft.ended(message=str(error), **self._who_serves())

    def _succeed(self, new_workers: list[int]) -> ReloadReport:
        loaded = self._instance.read_loaded()
        if loaded is None:
            return self._draft.ended(new_workers=new_workers, message=f"{self._instance.directory}/loaded.json is gone")
        good = self._instance.read_last_good()
        before = [slot.key for slot in good.config.slots] if good else []
        after = [slot.key for slot in loaded.config.slots]
        if loaded.fallback is None:
            self._instance.write_last_good(loaded.config)
        others, problem = self._release_others(loaded.config)
        self._instance.write_loaded(msgspec.structs.replace(loaded, settled=not problem, came_up=True))
        fallback = f"{loaded.fallback}\nHAProxy runs with the last good configuration" if loaded.fallback else ""
        return self._draft.ended(
            ok=loaded.fallback is None,
            message=fallback or problem,
            generation=loaded.generation,
            added=[key for key in after if key not in before],
            kept=[key for key in after if key in before],
            dropped=[key for key in before if key not in after],
            kept_by_others=others,
            new_workers=new_workers,
        )

    def _who_serves(self) -> dict[str, Any]:
        """Return the fields of the report that say who serves after a load that failed."""
        return {
            "serving": self._master.answering_workers(),
            "clients_wait": self._instance.read_invocation().binder is not None,
        }

    def _processes(self) -> Processes | None:
        """Ask until the master answers: HAProxy 2.6 re-executes itself once more. None after ``_MASTER_AWAY_S``."""
        deadline = time.monotonic() + _MASTER_AWAY_S
        while time.monotonic() < deadline:
            with contextlib.suppress(Unreachable):
                return self._master.processes()
            time.sleep(0.02)
        return None

    def _release_others(self, config: Config) -> tuple[list[str], str]:
        """Release what ``config`` does not bind. Return the addresses that other owners keep, and any problem.

        The problem is no failure of the reload.
        """
        invocation = self._instance.read_invocation()  # as the re-exec wrote it
        if not invocation.binder:
            return [], ""
        try:
            _, kept = sockets.release_others(invocation.binder, config.slots, invocation.owner)
        except MultibinderError as error:
            return [], f"listeners that are no longer bound could not be released: {error}; the next reload does it"
        return kept, ""
