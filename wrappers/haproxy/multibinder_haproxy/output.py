"""The output of the commands for people."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from multibinder.kernel.process import printable
from multibinder.kernel.terminal import printable_json, printable_lines
from multibinder_haproxy.accepting import sentences

if TYPE_CHECKING:
    from multibinder_haproxy.check import Checked
    from multibinder_haproxy.records import ReloadReport
    from multibinder_haproxy.status import Status
    from multibinder_haproxy.stop import Stopped

_COLUMNS = 80
STOP = "multibinder-haproxy stop"


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print lines without what a terminal obeys: names and paths are another user's, and HAProxy quotes its files."""
    click.echo(printable_lines(text), err=err, nl=nl)


def print_content(content: bytes) -> None:
    """Print the content of a file as it is; on a terminal without what a terminal obeys."""
    if sys.stdout.isatty():
        say(content.decode(errors="replace"), nl=False)
    else:
        click.echo(content, nl=False)


def say_json(value: object) -> None:
    """Print a value as JSON. What a terminal obeys is escaped; the value is exact."""
    click.echo(printable_json(msgspec.json.format(msgspec.json.encode(value)).decode()))


def warn(text: str) -> None:
    """Print a warning. Its further lines are indented: another user's words must not look like a message of ours."""
    say("\n  ".join(f"warning: {text}".splitlines()), err=True)


def print_error(text: str) -> None:
    say(f"multibinder-haproxy: {text}", err=True)


def note(text: str) -> None:
    """Print a note, as ``warn`` does a warning."""
    say("\n  ".join(f"note: {text}".splitlines()), err=True)


def print_checked(checked: Checked) -> None:
    """Print that a configuration passed the checks, with its binds."""
    config = checked.config
    for warning in [*config.warnings, *checked.warnings]:
        warn(warning)
    for each in [*config.notes, *checked.notes]:
        note(each)
    binds = ", ".join(slot.key for slot in config.slots) or "no bind_tcp()"
    say(f"ok: {len(config.files)} file(s), {binds}")


def print_stopped(name: str, stopped: Stopped) -> None:
    what = "stopped" if stopped.was_running else "was not running"
    closed = f"{', ' if stopped.was_running else '; '}closed {', '.join(stopped.closed)}" if stopped.closed else ""
    say(f"{name}: {what}{closed}")


def print_report(name: str, report: ReloadReport) -> None:
    """Print the report of a reload."""
    for warning in report.warnings:
        warn(warning)
    if report.ok:
        workers = f"worker {_list(report.old_workers)} -> {_list(report.new_workers)}"
        say(f"{name}: reloaded in {report.took_s:.2f} s, {workers}")
        for what, keys in (("added", report.added), ("kept", report.kept), ("dropped", report.dropped)):
            if keys:
                _print_row(what, ", ".join(keys), width=8)
        for sentence in sentences(report.unused):
            warn(sentence)
        for address in report.kept_by_others:
            say(f"  {printable(address)} stays open: another owner holds it")
        if report.message:
            warn(report.message)
    else:
        print_error(f"{name}: reload failed, {_who_serves(report)}:")
        say(report.message, err=True)


def print_status(status: Status) -> None:
    """Print the status of one instance."""
    if status.state == "stopped":
        say(f"{status.name}: stopped")
        _print_condemned(status)
        if status.waiting_on:
            _print_row("open", ", ".join(status.waiting_on))
            say(f"  clients wait there until HAProxy is started again; '{STOP} {status.name}' closes them")
        return
    version = f"HAProxy {status.version}, " if status.version else ""
    say(f"{status.name}: {status.state}, {printable(version)}master {status.master}")
    reloads = f"{status.reloads_total}; last success {_ago(status.last_success)}"
    if status.last_failure:
        reloads += f"; {status.failures_total} failed, last {_ago(status.last_failure)} ({status.last_failure_phase})"
    since = ", changed since" if status.config_changed else ""
    _print_row("workers", _list(status.workers) or "unknown")
    _print_row("draining", _list(status.old_workers) or "none")
    _print_row("reloads", reloads)
    _print_row("config", f"generation {status.generation}, loaded {_ago(status.loaded_at)}{since}")
    if status.changed != []:
        _print_row("changed", "cannot be told" if status.changed is None else ", ".join(status.changed))
    _print_row("binds", ", ".join(status.binds) or "none")
    _print_condemned(status)
    for bind in status.unused:
        _print_row("unused", f"{bind.key} ({bind.file}:{bind.line}): {bind.why}")
    for sentence in status.shared:
        _print_row("shared", sentence)
    for problem in status.problems:
        first, *rest = problem.splitlines()
        say("\n".join([f"  PROBLEM  {first}", *(f"           {line}" for line in rest)]))


def _who_serves(report: ReloadReport) -> str:
    """Say who serves after a reload that failed, and what clients see."""
    if report.serving is None:
        return "and HAProxy's master does not answer: whether the old worker serves is unknown"
    if report.serving:
        return f"the old worker ({_list(report.serving)}) serves as before"
    if report.clients_wait:
        return "and NO WORKER SERVES: clients wait in the queue until HAProxy is started again"
    return "and NO WORKER SERVES: clients are refused until HAProxy is started again"


def _print_condemned(status: Status) -> None:
    if status.condemned is None:
        return
    first, *rest = status.condemned.reason.splitlines() or [""]
    say("\n".join([f"  condemned {_ago(status.condemned.at)}: {first}", *(f"           {line}" for line in rest)]))
    say("  a start does not try that configuration again until one of its files changes; a reload does")


def print_finished(finished: subprocess.CompletedProcess[str]) -> None:
    """Print the output of a command that was run as another user."""
    say(finished.stdout, nl=False)
    say(finished.stderr, nl=False, err=True)


def _print_row(label: str, text: str, width: int = 9) -> None:
    """Print a label and its text in lines of 80 columns, also if the output is a pipe. Never splits an address."""
    say(
        textwrap.fill(
            text,
            _COLUMNS,
            initial_indent=f"  {label:{width}}",
            subsequent_indent=" " * (2 + width),
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def _ago(at: float | None) -> str:
    if at is None:
        return "unknown"
    seconds = max(0.0, time.time() - at)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
