"""What is known of an instance, for people and for programs."""

from __future__ import annotations

import time

import msgspec

from multibinder_haproxy import summary
from multibinder_haproxy.config import sources as origins
from multibinder_haproxy.errors import NotRunning, WrapperError
from multibinder_haproxy.instance import Instance, ReloadReport
from multibinder_haproxy.master import Master, Processes, environment_of, is_child, start_ticks_of
from multibinder_haproxy.summary import Summary

#: How long the master's CLI may be away while it executes itself, before that is worth a word.
_MASTER_AWAY_S = 1.0
FORMAT = 1


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """``state`` is ``running``, ``degraded`` (it runs, but see ``problems``) or ``stopped``.

    ``version`` is HAProxy's; ``format`` is that of this document, described in docs/instance-summary.md.
    """

    format: int = FORMAT
    name: str
    state: str
    master: int | None
    version: str | None
    workers: list[int]
    old_workers: list[int]
    generation: int
    loaded_at: float | None
    started: float | None
    last_success: float | None
    last_failure: float | None
    last_failure_phase: str | None
    starts_total: int
    reloads_total: int
    failures_total: int
    fallback: bool
    binds: list[str]
    config_changed: bool
    changed: list[str] | None
    problems: list[str]
    last_reload: ReloadReport | None


def status_of(instance: Instance) -> Status:
    """Raises NoSuchInstance. Changes nothing."""
    invocation = instance.read_invocation()
    processes, alive = _ask(instance, Master(invocation.master_socket))
    known = summary.read(instance) or Summary(instance.name)
    loaded = instance.read_loaded()
    report = instance.read_report()
    problems = []
    config_changed = False
    if processes is not None:
        if loaded is not None and loaded.fallback:
            problems.append(f"runs with the last good configuration, because: {loaded.fallback}")
        if loaded is not None and not loaded.settled:
            problems.append("the last reload has not ended, or nobody saw it end")
        if processes.failed:
            problems.append("the last reload failed" + (f": {report.message}" if report and report.message else ""))
        try:
            config = invocation.render(environment_of(processes.master))
            config_changed = loaded is not None and not config.same_as(loaded.config)
        except (WrapperError, OSError) as error:
            config_changed = True
            problems.append(f"the next reload would fail: {error}")
    elif alive is not None:
        problems.append(
            f"HAProxy's master (pid {alive}) lives, but does not answer on its CLI: it loads its configuration, or "
            "hangs; its log says what it is doing"
        )
    return Status(
        name=instance.name,
        state="degraded" if problems else "running" if processes else "stopped",
        master=processes.master if processes else alive,
        version=processes.version if processes else None,
        workers=processes.serving if processes else _children(alive, known.workers),
        old_workers=processes.draining if processes else _children(alive, known.old_workers),
        generation=loaded.generation if loaded else 0,
        loaded_at=loaded.at if loaded else None,
        started=known.started,
        last_success=known.last_success,
        last_failure=known.last_failure,
        last_failure_phase=known.last_failure_phase,
        starts_total=known.starts_total,
        reloads_total=known.reloads_total,
        failures_total=known.failures_total,
        fallback=known.fallback,
        binds=[slot.key for slot in loaded.config.slots] if loaded else [],
        config_changed=config_changed,
        changed=origins.changed(loaded.config.origins) if loaded else None,
        problems=problems,
        last_reload=report,
    )


def _ask(instance: Instance, master: Master) -> tuple[Processes | None, int | None]:
    """What HAProxy's master says; where it says nothing, its PID, if it lives.

    A master that has just begun to execute itself anew is asked again for a moment.
    """
    deadline = time.monotonic() + _MASTER_AWAY_S
    while True:
        try:
            return master.processes(), None
        except NotRunning:
            known = summary.read(instance)
            process = known.master if known else None
            if process is None or not process.start_ticks or start_ticks_of(process.pid) != process.start_ticks:
                return None, None
            if time.monotonic() > deadline:
                return None, process.pid
        time.sleep(0.02)


def _children(master: int | None, pids: list[int]) -> list[int]:
    return [pid for pid in pids if master is not None and is_child(pid, master)]
