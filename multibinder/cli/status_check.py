"""Judge a status report for a monitoring system: ``multibinder status --check``."""

from __future__ import annotations

from multibinder.cli.status_report import Report, Row
from multibinder.cli.status_text import addresses
from multibinder.cli.wording import count, rate_text

OK, WARNING, CRITICAL, UNKNOWN = range(4)
WORDS = {OK: "OK", WARNING: "WARNING", CRITICAL: "CRITICAL", UNKNOWN: "UNKNOWN"}

#: The fraction of a queue's limit from which its length is a warning.
_NEARLY_FULL = 0.8
#: The time for which a repair is a warning.
_REPAIR_MATTERS_S = 3600


def judge(report: Report) -> tuple[int, str]:
    """Return the exit code and the line of ``--check``: a sentence, ``|``, and the performance data."""
    rows = report.listeners
    orphans = [row for row in rows if row.state == "orphan"]
    stalled = [row for row in rows if row.state == "stalled"]
    repaired = [row for row in rows if row.repaired_at is not None and row.repaired_at > report.at - _REPAIR_MATTERS_S]
    dropping = [row for row in rows if row.drops_per_s]
    full = [row for row in rows if row.queue and row.limit and row.queue >= _NEARLY_FULL * row.limit]
    unkept = [row for row in rows if not row.kept] if report.binder["keeper"] is not None else []
    complaints = [
        f"{len(found)} {what}: {addresses(found, describe)}"
        for what, found, describe in (
            ("orphan" if len(orphans) == 1 else "orphans", orphans, _waiting),
            ("stalled", stalled, _waiting),
            ("dropping clients", dropping, lambda row: f"{row.key} ({rate_text(row.drops_per_s or 0)}/s)"),
            ("nearly full", full, lambda row: f"{row.key} ({row.queue} of {row.limit})"),
            ("repaired", repaired, lambda row: row.key),
            ("not kept through a crash", unkept, lambda row: row.key),
        )
        if found
    ]
    hidden = sum(1 for row in rows if row.holders is None)
    if hidden:
        complaints.append(f"holders of {hidden} hidden, so whether they are orphans is not known")
    code = CRITICAL if orphans or stalled else WARNING if dropping or full or repaired or unkept else OK
    figures = {
        "listeners": f"{len(rows)};;;0;{report.binder['listeners_limit']}",
        "orphans": f"{len(orphans)};;0",
        "stalled": f"{len(stalled)};;0",
        "repaired": f"{len(repaired)};0",
        "hidden": f"{hidden}",
        "waiting": f"{sum(row.queue or 0 for row in rows if row.accepts)}",
        "fullest": f"{max((100 * (row.queue or 0) / max(1, row.limit or 0) for row in rows), default=0):.0f}%;80",
        "drops": f"{sum(row.drops or 0 for row in rows)}c",
        "drops_per_second": f"{sum(row.drops_per_s or 0 for row in rows):.2f};0",
        "descriptors": f"{report.binder['descriptors']};;;0;{report.binder['descriptors_limit']}",
    }
    text = "; ".join(complaints) if complaints else f"{count(len(rows), 'listener')} serving"
    if complaints and code == OK:
        text = f"{count(len(rows), 'listener')}; {text}"
    return code, f"{text} | {' '.join(f'{name}={value}' for name, value in figures.items())}"


def _waiting(row: Row) -> str:
    waiting = "-" if row.queue is None else row.queue
    return f"{row.key} ({waiting}{'' if row.accepts else ' bytes'} waiting)"
