"""Format a status report for people: the table, a summary, and remarks with their remedies."""

from __future__ import annotations

import os
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence

import click

from multibinder.cli.status_report import STATES, Report, Row
from multibinder.cli.status_table import Line, table
from multibinder.cli.wording import age, count
from multibinder.kernel.process import printable

#: Red and magenta are readable on a light and on a dark background. The state is also written out.
COLOURS = {"orphan": "red", "stalled": "red", "repaired": "magenta", "draining": "cyan"}


def lines_of(report: Report, width: int, *, colour: bool) -> list[str]:
    """Return the whole report as lines of at most ``width`` columns, as far as its words allow."""
    lines = []
    if report.listeners:
        head, blocks = table(report, width)
        lines = [head.text, *(_coloured(line) if colour else line.text for block in blocks for line in block), ""]
    for sentence in [summary(report), *remarks(report)]:
        lines += textwrap.wrap(printable(sentence), max(20, width), break_long_words=False, break_on_hyphens=False)
    return lines


def wants_colour() -> bool:
    """Return whether to colour the output (https://no-color.org; FORCE_COLOR is for recordings)."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def summary(report: Report) -> str:
    """Return the number of listeners by state, and the binder's version, PID and age."""
    binder = report.binder
    counts = Counter(row.state for row in report.listeners)
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    listeners = count(len(report.listeners), "listener") + (f" ({states})" if states else "")
    up = age(report.at - binder["started"])
    return f"{listeners}; binder {binder['version']}, pid {binder['pid']}, up {up}"


def remarks(report: Report) -> list[str]:
    """Return sentences on hidden holders and on sockets without a keeper, each with its remedy."""
    found = []
    if any(not row.holders_complete for row in report.listeners):
        found.append(_hidden_holders(report))
    unkept = [row for row in report.listeners if not row.kept]
    if unkept and report.binder["keeper"] is None:
        found.append(
            "The sockets have no keeper: a crash of the binder would close the ports that have no holder. Run the "
            "binder by its systemd unit, or with --guard."
        )
    elif unkept:
        found.append(
            f"{addresses(unkept)} would not survive a crash of the binder: {report.binder['keeper']} has "
            f"{report.binder['kept']} of at most {report.binder['kept_limit']} descriptors. The binder's log says why."
        )
    return found


def addresses(rows: Sequence[Row], describe: Callable[[Row], str] = lambda row: row.address, *, most: int = 3) -> str:
    """Return the first ``most`` rows as ``describe`` words them, and the number of the others."""
    rest = f" and {len(rows) - most} more" if len(rows) > most else ""
    return ", ".join(map(describe, rows[:most])) + rest


def _hidden_holders(report: Report) -> str:
    users = ", ".join(map(str, report.hidden_users))
    whose = f" (of uid {users})" if users else ""
    unknown = sum(1 for row in report.listeners if row.holders is None)
    which = f"of {count(unknown, 'listener')} no holder is seen, and it may have one: " if unknown else ""
    remedy = (
        "Run this command as root to see them all."
        if os.geteuid()
        else "This is the root user of a container: run this command as root of the host."
    )
    return (
        f"Holders may be hidden: {which}neither the binder nor this user may look into every process{whose}. {remedy}"
    )


def _coloured(line: Line) -> str:
    if (name := COLOURS.get(line.state)) is None:
        return line.text
    return click.style(line.state, fg=name, bold=True) + line.text[len(line.state) :]
