"""``multibinder instances``: the instances of 'multibinder run' and of HAProxy, in one table."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import click
import msgspec

from multibinder.cli.named_instance import (
    EXIT_CODES,
    HAPROXY,
    RUN,
    become_wrapper,
    complete_name,
    directory_options,
    exits,
    kind_and_name,
    print_error,
    print_finished,
    run_as_owner,
)
from multibinder.cli.say import say, say_json, say_rows
from multibinder.cli.wording import age
from multibinder.kernel.process import printable
from multibinder.launch.errors import LaunchError
from multibinder.launch.run.ask import ask
from multibinder.launch.run.files import RunInstance
from multibinder.launch.run.report import Request, RunStatus
from multibinder.observe.instances import Instance, instances
from multibinder.wire.instance_summary import InstanceSummary

_HEADINGS = ("NAME", "KIND", "STATE", "PID", "READY", "OLD", "GEN", "RELOADS", "FAILED", "UP", "ADDRESSES")
_STATUS_S = 5.0


class InstanceRow(msgspec.Struct, frozen=True):
    """One instance of ``--json``. ``ready`` of ``wanted`` copies or workers serve, ``old`` finish; None is unknown.

    ``problem`` says in a sentence what is wrong, and is empty otherwise.
    """

    name: str
    kind: str
    state: str
    pid: int | None
    ready: int | None
    wanted: int | None
    old: int | None
    generation: int
    starts_total: int
    restarts_total: int
    reloads_total: int
    failures_total: int
    last_failure: float | None
    last_failure_phase: str | None
    started: float | None
    binds: Sequence[str]
    config_changed: bool | None
    problem: str


@click.command("instances", short_help="Show the instances of 'run' and of HAProxy.", epilog=EXIT_CODES)
@click.argument("name", required=False, shell_complete=complete_name, metavar="[NAME]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@directory_options
def instances_command(name: str | None, as_json: bool, runtime_dir: str, haproxy_dir: str) -> None:
    """Show all instances of 'multibinder run' and of 'multibinder-haproxy', or the state of one with its copies.

    The exit code is 1 if one has a problem.

    \b
    States:
      running   It serves. 'starting', 'canary' and 'waiting' (for the next try) are those of 'run'.
      gave-up   Its command cannot be started for --give-up-after; its ports are closed.
      alone     'multibinder run' was killed, and its copies serve on. A new 'run' takes them over.
      dead      Its process is gone, and nothing serves.
      stopped   It was stopped.

    \b
    Example:
      multibinder instances
      multibinder instances web --json | jq .copies
    """
    if name is not None:
        exits(lambda: _one(name, as_json, runtime_dir, haproxy_dir))
    rows: list[InstanceRow] = []
    failed = False
    for kind, directory in ((RUN, runtime_dir), (HAPROXY, haproxy_dir)):
        try:
            found = instances(directory)
        except OSError as error:
            print_error(f"{directory}: cannot be listed: {(error.strerror or str(error)).lower()}")
            failed = True
            continue
        for each in found:
            if each.summary is None:
                print_error(f"{each.name}: {each.why}")
                failed = True
            else:
                rows.append(_row(kind, each, each.summary))
    if as_json:
        say_json(rows)
    elif rows:
        _print_table(rows)
    elif not failed:
        say(f"No instances in {runtime_dir} or {haproxy_dir}.", err=True)
    sys.exit(int(failed or any(row.problem for row in rows)))


def _row(kind: str, instance: Instance, summary: InstanceSummary) -> InstanceRow:
    state, problem = _state(kind, instance, summary)
    return InstanceRow(
        name=instance.name,
        kind=kind,
        state=state,
        pid=summary.master.pid if summary.master and instance.up is not False else None,
        ready=instance.workers,
        wanted=summary.wanted if kind == RUN else None,
        old=instance.old_workers,
        generation=summary.generation,
        starts_total=summary.starts_total,
        restarts_total=summary.restarts_total,
        reloads_total=summary.reloads_total,
        failures_total=summary.failures_total,
        last_failure=summary.last_failure,
        last_failure_phase=summary.last_failure_phase,
        started=summary.started,
        binds=summary.binds,
        config_changed=instance.changed,
        problem=problem,
    )


def _state(kind: str, instance: Instance, summary: InstanceSummary) -> tuple[str, str]:
    """Return the state in a word, and what is wrong in a sentence."""
    if summary.state == "stopped":
        return "stopped", ""
    if instance.up is False:
        if kind == RUN and (instance.workers or instance.old_workers):
            return "alone", "'multibinder run' was killed; its copies serve on, and are not started again after a crash"
        return "dead", "its process is gone, and clients wait"
    if summary.gave_up:
        return "gave-up", "its command cannot be started, and its ports are closed; its log says why"
    state = summary.activity or summary.state
    if kind == RUN and state == "starting" and (summary.last_failure or 0) > (summary.started or 0):
        return (
            state,
            f"no copy is ready yet, and the last start failed; 'multibinder instances {instance.name}' says why",
        )
    if kind == RUN and state == "waiting":
        return state, "its command ended, and is tried again; its log says why"
    if kind == RUN and state == "running" and instance.workers is not None and instance.workers < summary.wanted:
        return state, f"{summary.wanted - instance.workers} of {summary.wanted} copies are not ready"
    if summary.fallback:
        return state, "it runs with the last good configuration, because the present one is broken"
    return state, ""


def _print_table(rows: Sequence[InstanceRow]) -> None:
    lines = [_HEADINGS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    for row in rows:
        if row.problem:
            shown.append(f"{printable(row.name)}: {row.problem}")
        if row.config_changed:
            reload = f"multibinder reload {printable(row.name)}"
            shown.append(f"{printable(row.name)}: its files changed since they were loaded: '{reload}'")
    say_rows(shown)


def _cells(row: InstanceRow) -> tuple[str, ...]:
    ready = "-" if row.ready is None else str(row.ready) if row.wanted is None else f"{row.ready}/{row.wanted}"
    up = "-" if row.started is None or row.pid is None else age(time.time() - row.started)
    cells = (
        row.name,
        row.kind,
        row.state,
        str(row.pid or "-"),
        ready,
        "-" if row.old is None else str(row.old),
        str(row.generation),
        str(row.reloads_total),
        str(row.failures_total),
        up,
        ", ".join(row.binds) or "-",
    )
    return tuple(printable(cell) for cell in cells)


def _one(text: str, as_json: bool, runtime_dir: str, haproxy_dir: str) -> int:
    kind, name = kind_and_name(text, runtime_dir, haproxy_dir)
    json = ["--json"] if as_json else []
    if kind == HAPROXY:
        become_wrapper(haproxy_dir, "status", *json, name)
    instance = RunInstance(runtime_dir, name)
    finished = run_as_owner(instance, "instances", *json, f"{RUN}:{name}", timeout_s=_STATUS_S)
    if finished is not None:
        print_finished(finished)
        return finished.returncode
    status = ask(instance, Request("status"), _STATUS_S, lambda _: None).status
    if status is None:
        raise LaunchError(f"the 'multibinder run' of {name} gave no status")
    if as_json:
        say_json(status)
    else:
        _print_status(status)
    return int(bool(status.problems))


def _print_status(status: RunStatus) -> None:
    say(f"{status.name}: {status.state}, pid {status.pid}, generation {status.generation}")
    say(f"  command   {' '.join(status.command)}")
    say(f"  binds     {', '.join(status.binds) or 'none'}")
    for copy in status.copies:
        by = f", {copy.ready_by}" if copy.ready_by else ""
        since = age(time.time() - copy.since)
        say(f"  copy      {copy.index}: pid {copy.pid}, generation {copy.generation}, {copy.state} ({since}{by})")
    say(f"  reloads   {status.reloads_total}; {status.restarts_total} restarts, {status.failures_total} failures")
    if status.last_failure:
        say("\n            ".join(f"  failure   {status.last_failure}".splitlines()))
    for problem in status.problems:
        say("\n           ".join(f"  PROBLEM  {problem}".splitlines()))
