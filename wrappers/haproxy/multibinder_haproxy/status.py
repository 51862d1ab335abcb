"""``status``: the state of an instance, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from multibinder.kernel.process import is_child
from multibinder.launch import records
from multibinder.launch.errors import LaunchError, NotAnswering, NotRunning
from multibinder_haproxy import last_good
from multibinder_haproxy.config import sources
from multibinder_haproxy.config.model import UnusedBind
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.invocation import Invocation
from multibinder_haproxy.master import Processes
from multibinder_haproxy.records import Condemned, Loaded, ReloadReport
from multibinder_haproxy.shared import others_on
from multibinder_haproxy.sockets import open_listeners

#: While the master executes itself, its CLI may be away for this time. A longer absence is a problem.
_MASTER_AWAY_S = 1.0
FORMAT = 1


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``status --json``, described in docs/instance-summary.md.

    ``state`` is ``running``, ``degraded`` (it runs, and has ``problems``) or ``stopped``. ``answers``: HAProxy's master
    answers. ``unused`` are binds that HAProxy does not accept on, ``shared`` sentences about addresses that another
    owner has too, and ``closed_frontends`` those that were disabled or shut down on HAProxy's CLI. ``waiting_on`` are
    the open ports of a stopped instance: clients wait there. ``condemned`` is a configuration that failed to come up,
    and that a start does not try again. ``version`` is HAProxy's; ``format`` is that of this document.
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
    answers: bool
    unused: list[UnusedBind]
    shared: list[str]
    closed_frontends: list[str]
    waiting_on: list[str]
    condemned: Condemned | None


def status_of(instance: Instance) -> Status:
    """Return the status of an instance. Changes nothing. Raises NoSuchInstance, NotTrusted."""
    invocation = instance.read_invocation()
    processes, alive, silence = None, None, ""
    try:
        processes = instance.master().processes(_MASTER_AWAY_S)
    except NotAnswering as error:
        alive, silence = instance.master_pid(), str(error)
    except NotRunning:
        pass
    summary = instance.summary.read_or_new()
    loaded = instance.read_loaded()
    report = instance.read_report()
    problems: list[str] = []
    closed: list[str] = []
    config_changed = False
    if processes is not None:
        closed = [name for pid in processes.serving for name in instance.master().closed_frontends(pid)]
        config_changed, next_reload = _compare(instance, invocation, loaded)
        problems = [*_problems(processes, loaded, report), *_closed(invocation, closed), *next_reload]
    elif alive is not None:
        problems.append(silence)
    return Status(
        name=instance.name,
        state="degraded" if problems else "running" if processes else "stopped",
        master=processes.master if processes else alive,
        version=processes.version if processes else None,
        workers=processes.serving if processes else _children(alive, summary.workers),
        old_workers=processes.draining if processes else _children(alive, summary.old_workers),
        generation=loaded.generation if loaded else 0,
        loaded_at=loaded.at if loaded else None,
        started=summary.started,
        last_success=summary.last_success,
        last_failure=summary.last_failure,
        last_failure_phase=summary.last_failure_phase,
        starts_total=summary.starts_total,
        reloads_total=summary.reloads_total,
        failures_total=summary.failures_total,
        fallback=summary.fallback,
        binds=[slot.key for slot in loaded.config.slots] if loaded else [],
        config_changed=config_changed,
        changed=sources.changed(loaded.config.sources) if loaded else None,
        problems=problems,
        last_reload=report,
        answers=processes is not None,
        unused=loaded.unused if loaded else [],
        shared=others_on(invocation.binder, loaded.config.slots, invocation.owner) if loaded and processes else [],
        closed_frontends=closed,
        condemned=records.read_record(last_good.path_of_condemned(invocation), Condemned),
        waiting_on=[] if processes or alive else open_listeners(invocation.binder, invocation.owner),
    )


def exit_code_of(status: Status) -> int:
    """Return the exit code of ``status``: 0 running, 1 degraded, 3 stopped, 5 the master does not answer."""
    if status.state == "stopped":
        return 3
    if not status.answers:
        return 5
    return int(status.state == "degraded")


def _problems(processes: Processes, loaded: Loaded | None, report: ReloadReport | None) -> list[str]:
    problems = []
    if loaded is not None and loaded.fallback:
        problems.append(f"runs with the last good configuration, because: {loaded.fallback}")
    if loaded is not None and not loaded.settled:
        problems.append("the last reload has not ended, or its end was not seen")
    if processes.last_load_failed:
        problems.append("the last reload failed" + (f": {report.message}" if report and report.message else ""))
    return problems


def _closed(invocation: Invocation, frontends: Sequence[str]) -> list[str]:
    """Return a problem if frontends were closed on HAProxy's CLI: it does not close a listener that it inherited."""
    if not frontends:
        return []
    closed = f"disabled or shut down on HAProxy's CLI: frontend {', '.join(dict.fromkeys(frontends))}"
    if not invocation.binder:
        return [f"{closed}; its clients are refused"]
    instead = f"multibinder release --owner {invocation.owner} ADDRESS"
    sentence = (
        f"{closed}; clients of its bind_tcp() are not refused, they WAIT; 'enable frontend' or a reload ends that; to "
        f"refuse them, close its ports with '{instead}': a reload opens them again"
    )
    return [sentence]


def _compare(instance: Instance, invocation: Invocation, loaded: Loaded | None) -> tuple[bool, list[str]]:
    """Return whether a reload would load another configuration or fail. If it would fail, also return the problem."""
    try:
        config = invocation.render(instance.environment())
    except (LaunchError, OSError) as error:
        return True, [f"the next reload would fail: {error}"]
    return loaded is not None and not loaded.config.is_from(config), []


def _children(master: int | None, pids: Sequence[int]) -> list[int]:
    return [pid for pid in pids if master is not None and is_child(pid, master)]
