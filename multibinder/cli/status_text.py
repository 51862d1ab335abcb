"""The table of ``multibinder status``, as plain lines: for 10,000 listeners as for three, in a pipe as well."""

from __future__ import annotations

import os
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from multibinder.cli.listeners import age
from multibinder.cli.status_report import STATES, Report, Row

_HEADINGS = ("STATE", "ADDRESS", "QUEUE", "DROPS", "DROPS/S", "HANDOFFS", "AGE")
_TO_THE_RIGHT = {"QUEUE", "DROPS", "DROPS/S", "HANDOFFS", "AGE"}
_BETWEEN = "  "
#: Of a queue's history, from empty to full.
_LEVELS, _ASCII_LEVELS = "▁▂▃▄▅▆▇█", "_.:-=+*#"


class Line(NamedTuple):
    """``state``: of the listener whose first line this is; its text begins with that word. Else empty."""

    text: str
    state: str = ""


def table(
    report: Report,
    width: int,
    rates: Mapping[int, float] | None = None,
    histories: Mapping[int, Sequence[int]] | None = None,
    *,
    ascii_only: bool = False,
) -> tuple[Line, list[list[Line]]]:
    """The heading, and for each listener its lines: one where the width allows it for all, else two or more.

    ``rates`` (drops a second) and ``histories`` (of the queue's length) are by the listener's cookie.
    """
    rows = report.listeners
    now = report.at
    cells = [_cells(row, now, (rates or {}).get(row.cookie, row.drops_per_s)) for row in rows]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *cells, strict=True)]
    narrow = sum(widths) + len(_BETWEEN) * (len(widths) - 1)
    if narrow > width:
        # Some address is too long for a line of its own with the rest: the other lines need not be as long.
        widths[1] = max(len("ADDRESS"), widths[1] - (narrow - width))
    history = _history_of(rows, histories, _ASCII_LEVELS if ascii_only else _LEVELS)
    details = [(h, _owners(row), holders_text(row)) for h, row in zip(history, rows, strict=True)]
    names = ("HISTORY", "OWNERS", "HOLDERS") if histories is not None else ("", "OWNERS", "HOLDERS")
    more = [max(map(len, column)) for column in zip(names, *details, strict=True)]
    wide = narrow + sum(more) + len(_BETWEEN) * sum(1 for size in more if size) <= width
    head = _join(_HEADINGS, widths)
    if wide:
        head = _beside(head, names, more)
    indent = " " * (widths[0] + len(_BETWEEN))
    blocks = []
    for row, cell, detail in zip(rows, cells, details, strict=True):
        first = _join(cell, widths)
        if wide:
            blocks.append([Line(_beside(first, detail, more), row.state)])
            continue
        lines, name = [Line(first, row.state)], ""
        if len(first) > width:
            lines = [Line(_BETWEEN.join([cell[0].ljust(widths[0]), row.address]), row.state)]
            lines.append(Line(_join(("", "", *cell[2:]), widths)))
            name = f"({row.name})" if row.name else ""
        text = _BETWEEN.join(filter(None, [detail[0], name, f"{detail[1]}: {detail[2]}"]))
        folded = [text] if len(indent) + len(text) <= width else textwrap.wrap(
            text, max(20, width - len(indent)), break_on_hyphens=False
        )  # fmt: skip
        lines += [Line(indent + line) for line in folded]
        blocks.append(lines)
    return Line(head), blocks


def summary(report: Report) -> str:
    binder = report.binder
    counts = Counter(row.state for row in report.listeners)
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    listeners = count(len(report.listeners), "listener") + (f" ({states})" if states else "")
    up = age(report.at - binder["started"])
    return f"{listeners}; binder {binder['version']}, pid {binder['pid']}, up {up}"


def remarks(report: Report) -> list[str]:
    """What an operator should know beside the table, each with its remedy."""
    found = []
    unknown = sum(1 for row in report.listeners if row.holders is None)
    if any(not row.holders_complete for row in report.listeners):
        users = ", ".join(map(str, report.hidden_users))
        whose = f" (of uid {users})" if users else ""
        which = f"of {count(unknown, 'listener')} no holder is seen, and it may have one: " if unknown else ""
        remedy = (
            "Run this command as root to see them all."
            if os.geteuid()
            else "This is a container's root: ask the host's."
        )
        found.append(
            f"Holders may be hidden: {which}neither the binder nor this user may look into every process{whose}. "
            f"{remedy}"
        )
    loose = [row for row in report.listeners if not row.kept]
    if loose and report.binder["keeper"] is None:
        found.append(
            "Nobody keeps the sockets: a crash of the binder would close the ports that have no holder. Run it by its "
            "systemd unit, or with --guard."
        )
    elif loose:
        found.append(
            f"{addresses(loose)} would not survive a crash of the binder: {report.binder['keeper']} has "
            f"{report.binder['kept']} of at most {report.binder['kept_limit']} descriptors. The binder's log says why."
        )
    return found


def holders_text(row: Row) -> str:
    if row.holders is None:
        return "holders hidden"
    return ", ".join(f"{each.name} {each.pid} {each.role}" for each in row.holders) or "no holder"


def addresses(rows: Sequence[Row], most: int = 3, say: Callable[[Row], str] = lambda row: row.address) -> str:
    rest = f" and {len(rows) - most} more" if len(rows) > most else ""
    return ", ".join(say(row) for row in rows[:most]) + rest


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def rate_text(per_s: float) -> str:
    return "0" if not per_s else f"{per_s:.1f}" if per_s < 100 else f"{per_s:,.0f}"


def clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _cells(row: Row, now: float, rate: float) -> tuple[str, ...]:
    name = f" ({row.name})" if row.name else ""
    return (
        row.state,
        row.address + name,
        f"{row.queue}/{row.limit}",
        str(row.drops),
        rate_text(rate),
        str(row.handoffs),
        age(now - row.created),
    )


def _owners(row: Row) -> str:
    return ", ".join(dict.fromkeys(owner.label or "-" for owner in row.owners))


def _history_of(rows: Sequence[Row], histories: Mapping[int, Sequence[int]] | None, levels: str) -> list[str]:
    if histories is None:
        return [""] * len(rows)

    def level(length: int, limit: int) -> str:
        # Anything is more than nothing; only a full queue is at the top.
        return levels[0 if not length else min(len(levels) - 1, 1 + length * (len(levels) - 2) // max(1, limit))]

    return ["".join(level(length, row.limit) for length in histories.get(row.cookie, ())) for row in rows]


def _join(cells: Sequence[str], widths: Sequence[int]) -> str:
    return _BETWEEN.join(
        text.rjust(size) if heading in _TO_THE_RIGHT else text.ljust(size)
        for text, size, heading in zip(cells, widths, _HEADINGS, strict=True)
    ).rstrip()


def _beside(line: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    shown = [text.ljust(size) for text, size in zip(cells, widths, strict=True) if size]
    return _BETWEEN.join([line, *shown]).rstrip()
