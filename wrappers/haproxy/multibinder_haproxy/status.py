"""What is known of an instance, for people and for programs."""

from __future__ import annotations

import msgspec

from multibinder_haproxy.errors import NotRunning, WrapperError
from multibinder_haproxy.instance import Instance, ReloadReport
from multibinder_haproxy.master import Master, environment_of


class Status(msgspec.Struct, frozen=True):
    """``state`` is ``running``, ``degraded`` (it runs, but see ``problems``) or ``stopped``."""

    name: str
    state: str
    master: int | None
    version: str | None
    workers: list[int]
    old_workers: list[int]
    generation: int
    loaded_at: float | None
    binds: list[str]
    config_changed: bool
    problems: list[str]
    last_reload: ReloadReport | None


def status_of(instance: Instance) -> Status:
    """Raises NoSuchInstance. Changes nothing."""
    invocation = instance.read_invocation()
    loaded = instance.read_loaded()
    report = instance.read_report()
    try:
        processes = Master(invocation.master_socket).processes()
    except NotRunning:
        processes = None
    problems = []
    changed = False
    if processes is not None:
        if loaded is not None and loaded.fallback:
            problems.append(f"runs with the last good configuration, because: {loaded.fallback}")
        if loaded is not None and not loaded.settled:
            problems.append("the last reload has not ended, or nobody saw it end")
        if processes.failed:
            problems.append("the last reload failed" + (f": {report.message}" if report and report.message else ""))
        try:
            config = invocation.render(environment_of(processes.master))
            changed = loaded is not None and not config.same_as(loaded.config)
        except WrapperError as error:
            changed = True
            problems.append(f"the next reload would fail: {error}")
    workers = [worker.pid for worker in processes.workers] if processes else []
    old = [worker.pid for worker in processes.old_workers] if processes else []
    return Status(
        name=instance.name,
        state="stopped" if processes is None else "degraded" if problems else "running",
        master=processes.master if processes else None,
        version=processes.version if processes else None,
        # HAProxy from 3.1 on lists the worker that serves on after a failed reload as an old one.
        workers=workers or old[:1],
        old_workers=old if workers else old[1:],
        generation=loaded.generation if loaded else 0,
        loaded_at=loaded.at if loaded else None,
        binds=[slot.key for slot in loaded.config.slots] if loaded else [],
        config_changed=changed,
        problems=problems,
        last_reload=report,
    )
