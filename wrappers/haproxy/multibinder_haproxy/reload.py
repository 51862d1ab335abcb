"""``check``, ``reload``, ``stop``, and the settling of reloads that nobody watched."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection
from typing import Any

import msgspec

from multibinder import MultibinderError
from multibinder_haproxy import sockets, summary
from multibinder_haproxy.check import check_with_haproxy
from multibinder_haproxy.config.jinja import Config, Slot
from multibinder_haproxy.errors import BinderAway, NotRunning, ReloadFailed, WrapperError
from multibinder_haproxy.instance import Instance, Loaded, ReloadReport
from multibinder_haproxy.invocation import Invocation
from multibinder_haproxy.master import Master, Processes, environment_of, is_alive

#: How long its CLI may be away while the master executes itself.
_MASTER_AWAY_S = 2.0


def now_s() -> float:
    """Seconds on CLOCK_BOOTTIME: comparable between processes, and never set back."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def check(instance: Instance) -> Config:
    """Whether a reload would succeed, as far as that can be known. Touches nothing. Raises WrapperError."""
    invocation = instance.read_invocation()
    master = Master(invocation.master_socket).processes().master
    loaded = instance.read_loaded()
    environment = environment_of(master)
    config = invocation.render(environment)
    held = {slot.key: slot for slot in loaded.config.slots} if loaded else {}
    _check_new_binds(invocation, [slot for slot in config.slots if held.get(slot.key) != slot])
    check_with_haproxy(invocation, config, environment)
    return config


def reload(instance: Instance, timeout_s: float) -> ReloadReport:
    """Check, reload, wait for the new worker, release what is no longer bound. ``timeout_s`` for each wait.

    The report's ``ok`` is False when HAProxy gave up or did not answer in time: the old worker serves as before.
    Raises WrapperError for what was found before anything was touched. A reload that waited for another one, which
    began after it was asked for, is answered with that one's report.
    """
    asked_at = now_s()
    instance.read_invocation()
    with instance.locked(timeout_s):
        last = instance.read_report()
        if last is not None and last.started_s > asked_at:
            return last
        draft = _draft()
        before = instance.read_loaded()
        try:
            config = check(instance)
            report = _perform(instance, timeout_s, msgspec.structs.replace(draft, warnings=config.warnings))
        except (WrapperError, OSError) as error:
            _summarize(instance, before, error)
            instance.write_report(_ended(draft, ok=False, message=str(error)))
            raise
        instance.write_report(report)
        return report


def settle(instance: Instance, timeout_s: float) -> None:
    """Find out how an unwatched reload ended and make the binder's listeners agree with it.

    HAProxy was told to reload by a signal or on its own CLI, so no ``reload`` command waits for the new worker. Does
    nothing if one does after all, or did.
    """
    invocation = instance.read_invocation()
    with instance.locked(timeout_s):
        loaded = instance.read_loaded()
        if loaded is None or loaded.settled:
            return
        master = Master(invocation.master_socket)
        instance.write_report(_conclude(instance, master, loaded.master, loaded.old_workers, timeout_s, _draft()))


def stop(instance: Instance, timeout_s: float, keep_listeners: bool) -> list[str]:
    """Let the workers finish their connections and end; give the listeners back. The addresses that were closed.

    Raises NotRunning, WrapperError if HAProxy is still there after ``timeout_s``: its listeners are closed by then,
    unless ``keep_listeners``.
    """
    invocation = instance.read_invocation()
    with instance.locked(timeout_s):
        pid = Master(invocation.master_socket).processes().master
        # SIGUSR1 to the master: graceful stop (management guide, "Stopping and restarting HAProxy").
        os.kill(pid, signal.SIGUSR1)
        summary.stopping(instance)
        closed: list[str] = []
        if invocation.binder and not keep_listeners:
            # Nobody accepts from now on; a client in the queue should be told rather than wait.
            with contextlib.suppress(MultibinderError):
                closed, _ = sockets.release_others(invocation.binder, [], invocation.owner)
        deadline = time.monotonic() + timeout_s
        while is_alive(pid):
            if time.monotonic() > deadline:
                raise WrapperError(
                    f"{instance.name} (pid {pid}) still has connections after {timeout_s:g} s; wait longer with "
                    f"--timeout, or end them with 'kill {pid}'"
                )
            time.sleep(0.05)
        summary.stopped(instance)
        return closed


def _check_new_binds(invocation: Invocation, slots: list[Slot]) -> None:
    if not invocation.binder:
        return
    try:
        sockets.check_binds(invocation.binder, slots, invocation.owner)
    except BinderAway as error:
        new = ", ".join(slot.key for slot in slots)
        raise BinderAway(f"the new configuration binds {new}, and the binder cannot be asked: {error}") from error


def _perform(instance: Instance, timeout_s: float, draft: ReloadReport) -> ReloadReport:
    master = Master(instance.read_invocation().master_socket)
    before = master.processes()
    generation = loaded.generation if (loaded := instance.read_loaded()) else 0
    old = [worker.pid for worker in (*before.workers, *before.old_workers)]
    draft = msgspec.structs.replace(draft, old_workers=[worker.pid for worker in before.workers] or old[:1])
    try:
        log = master.reload(timeout_s)
    except ReloadFailed as error:
        return _failed(instance, master, draft, error)
    report = _conclude(instance, master, before.master, old, timeout_s, draft)
    if report.ok and report.generation <= generation:
        wrapper = instance.read_invocation().wrapper
        raise ReloadFailed(f"HAProxy reloaded, but without its wrapper: is {wrapper} still there?\n{log}".strip())
    return report


def _conclude(
    instance: Instance, master: Master, master_pid: int, old: Collection[int], timeout_s: float, draft: ReloadReport
) -> ReloadReport:
    """Wait for the new worker; then promote the configuration and release what it does not bind, or the contrary."""
    try:
        workers = master.await_new_worker(old, time.monotonic() + timeout_s, lambda: is_alive(master_pid))
    except ReloadFailed as error:
        return _failed(instance, master, draft, error)
    except NotRunning as error:
        summary.reload_unseen(instance, error)
        return _ended(draft, ok=False, message=f"HAProxy's master is gone: {error}")
    except TimeoutError as error:
        # It may still come up: what it binds must not be taken away from it.
        message = f"no new worker answered within {timeout_s:g} s; HAProxy's log says what it is doing"
        summary.reload_unseen(instance, error)
        return _ended(draft, ok=False, message=message)
    summary.reload_ended(instance, [worker.pid for worker in workers], _processes(master))
    return _settled(instance, msgspec.structs.replace(draft, new_workers=[worker.pid for worker in workers]))


def _settled(instance: Instance, draft: ReloadReport) -> ReloadReport:
    loaded = instance.read_loaded()
    if loaded is None:
        return _ended(draft, ok=False, message=f"{instance.directory}/loaded.json is gone")
    good = instance.read_last_good()
    before = [slot.key for slot in good.config.slots] if good else []
    after = [slot.key for slot in loaded.config.slots]
    if loaded.fallback is None:
        instance.write_last_good(loaded.config)
    others, problem = _release_others(instance, loaded.config)
    instance.write_loaded(msgspec.structs.replace(loaded, settled=not problem))
    return _ended(
        draft,
        ok=loaded.fallback is None,
        message=f"{loaded.fallback}\nHAProxy runs with the last good configuration" if loaded.fallback else problem,
        generation=loaded.generation,
        added=[key for key in after if key not in before],
        kept=[key for key in after if key in before],
        dropped=[key for key in before if key not in after],
        kept_by_others=others,
    )


def _failed(instance: Instance, master: Master, draft: ReloadReport, error: ReloadFailed) -> ReloadReport:
    """The old worker serves the last good configuration: a listener that only the new one has would swallow clients."""
    summary.reload_failed(instance, error, _processes(master))
    loaded, good = instance.read_loaded(), instance.read_last_good()
    if loaded is not None and good is not None:
        _, problem = _release_others(instance, good.config)
        instance.write_loaded(msgspec.structs.replace(loaded, settled=not problem))
    return _ended(draft, ok=False, message=str(error))


def _processes(master: Master) -> Processes | None:
    """None while HAProxy 2.6 re-executes itself once more, for a while."""
    deadline = time.monotonic() + _MASTER_AWAY_S
    while time.monotonic() < deadline:
        with contextlib.suppress(NotRunning):
            return master.processes()
        time.sleep(0.02)
    return None


def _summarize(instance: Instance, before: Loaded | None, error: Exception) -> None:
    """A reload that raised: HAProxy was not told of it, or was and nobody saw how it ended."""
    after = instance.read_loaded()
    if isinstance(error, NotRunning) and (after is None or not is_alive(after.master)):
        return  # there was nothing to reload
    if before is not None and after is not None and after.generation > before.generation:
        summary.reload_unseen(instance, error)
    else:
        summary.reload_refused(instance, error)


def _release_others(instance: Instance, config: Config) -> tuple[list[str], str]:
    """Those that other owners keep, and what went wrong, if so: the reload has succeeded all the same."""
    invocation = instance.read_invocation()
    if not invocation.binder:
        return [], ""
    try:
        _, kept = sockets.release_others(invocation.binder, config.slots, invocation.owner)
    except MultibinderError as error:
        return [], f"listeners that are no longer bound could not be released: {error}; the next reload does it"
    return kept, ""


def _draft() -> ReloadReport:
    return ReloadReport(ok=False, started_s=now_s(), took_s=0.0, at=time.time())


def _ended(draft: ReloadReport, **changes: Any) -> ReloadReport:
    return msgspec.structs.replace(draft, took_s=now_s() - draft.started_s, **changes)
