"""Lay out the listeners of a status report as a table of plain text lines.

It does not use rich, because 10,000 listeners must take milliseconds, and a pipe gets the same lines as a terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from multibinder.cli.status_report import Report, Row
from multibinder.cli.wording import age, owner_names, rate_text
from multibinder.kernel.process import printable

_HEADINGS = ("STATE", "ADDRESS", "QUEUE", "DROPS", "DROPS/S", "HANDOFFS", "AGE")
_ADDRESS = _HEADINGS.index("ADDRESS")
_RIGHT_ALIGNED = {"QUEUE", "DROPS", "DROPS/S", "HANDOFFS", "AGE"}
_SEPARATOR = "  "
#: The characters of a queue's history, from empty to full.
_LEVELS, _ASCII_LEVELS = "▁▂▃▄▅▆▇█", "_.:-=+*#"


class Line(NamedTuple):
    """A line of the table. ``state`` is set on the first line of a listener, whose text begins with that word."""

    text: str
    state: str = ""


def _line(text: str, state: str = "") -> Line:
    """Return a line. Names, labels and processes in it are of other users, who must not end it."""
    return Line(printable(text), state)


def table(
    report: Report,
    width: int,
    rates: Mapping[int, float] | None = None,
    histories: Mapping[int, Sequence[int]] | None = None,
    *,
    ascii_only: bool = False,
) -> tuple[Line, list[list[Line]]]:
    """Return the heading, and the lines of each listener: one line if ``width`` allows that for all, else several.

    ``rates`` (drops a second) and ``histories`` (lengths of the queue, the oldest first) are by the listener's cookie.
    """
    rows = report.listeners
    cells = [_cells(row, report.at, _rate(row, rates or {})) for row in rows]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *cells, strict=True)]
    total = sum(widths) + len(_SEPARATOR) * (len(widths) - 1)
    if total > width:
        # A row with a long address is broken into two lines, so the column need not be as wide as that address.
        widths[_ADDRESS] = max(len("ADDRESS"), widths[_ADDRESS] - (total - width))
    levels = _ASCII_LEVELS if ascii_only else _LEVELS
    details = [(_history(row, histories, levels), _owners(row), _holders(row)) for row in rows]
    names = ("HISTORY" if histories is not None else "", "OWNERS", "HOLDERS")
    detail_widths = [max(map(len, column)) for column in zip(names, *details, strict=True)]
    head = _join(_HEADINGS, widths)
    if total + sum(detail_widths) + len(_SEPARATOR) * sum(1 for size in detail_widths if size) <= width:
        blocks = [
            [_line(_beside(_join(cell, widths), detail, detail_widths), row.state)]
            for row, cell, detail in zip(rows, cells, details, strict=True)
        ]
        return _line(_beside(head, names, detail_widths)), blocks
    blocks = [
        _several_lines(row, cell, detail, widths, width) for row, cell, detail in zip(rows, cells, details, strict=True)
    ]
    return _line(head), blocks


def _several_lines(
    row: Row, cells: Sequence[str], details: Sequence[str], widths: Sequence[int], width: int
) -> list[Line]:
    """Return the lines of one listener, with its details indented below its cells."""
    history, owners, holders = details
    name = ""
    lines = [_line(_join(cells, widths), row.state)]
    if len(lines[0].text) > width:
        lines = [
            _line(_SEPARATOR.join([cells[0].ljust(widths[0]), row.key]), row.state),
            _line(_join(("", "", *cells[2:]), widths)),
        ]
        name = f"({row.name})" if row.name else ""
    indent = " " * (widths[0] + len(_SEPARATOR))
    text = printable(_SEPARATOR.join(filter(None, [history, name, f"{owners}: {holders}"])))
    if len(indent) + len(text) <= width:
        return [*lines, _line(indent + text)]
    wrapped = textwrap.wrap(text, max(20, width - len(indent)), break_on_hyphens=False)
    return [*lines, *(_line(indent + line) for line in wrapped)]


def _rate(row: Row, rates: Mapping[int, float]) -> float | None:
    return None if row.drops_per_s is None else rates.get(row.cookie, row.drops_per_s)


def _cells(row: Row, now: float, rate: float | None) -> tuple[str, ...]:
    name = f" ({row.name})" if row.name else ""
    return (
        row.state,
        row.key + name,
        "-" if row.queue is None else f"{row.queue}/{row.limit}{'' if row.accepts else ' B'}",
        "-" if row.drops is None else str(row.drops),
        "-" if rate is None else rate_text(rate),
        str(row.handoffs),
        age(now - row.created),
    )


def _owners(row: Row) -> str:
    return ", ".join(owner_names(row.owners, "-"))


def _holders(row: Row) -> str:
    if row.holders is None:
        return "holders hidden"
    return ", ".join(f"{each.name} {each.pid} {each.role}" for each in row.holders) or "no holder"


def _history(row: Row, histories: Mapping[int, Sequence[int]] | None, levels: str) -> str:
    """Return a character for each remembered length of the queue. Only a full queue has the highest level."""
    if histories is None:
        return ""

    limit = max(1, row.limit or 0)

    def level(length: int) -> str:
        return levels[0 if not length else min(len(levels) - 1, 1 + length * (len(levels) - 2) // limit)]

    return "".join(map(level, histories.get(row.cookie, ())))


def _join(cells: Sequence[str], widths: Sequence[int]) -> str:
    return _SEPARATOR.join(
        text.rjust(size) if heading in _RIGHT_ALIGNED else text.ljust(size)
        for text, size, heading in zip(cells, widths, _HEADINGS, strict=True)
    ).rstrip()


def _beside(line: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return the line with further cells at its right; an empty column is left out."""
    shown = [text.ljust(size) for text, size in zip(cells, widths, strict=True) if size]
    return _SEPARATOR.join([line, *shown]).rstrip()
