"""``multibinder status``."""

from __future__ import annotations

import os
import shutil
import sys

import click
import msgspec

from multibinder import SOCKET_VARIABLE, Client, MultibinderError
from multibinder.cli.status_report import Report, Row, report_of
from multibinder.cli.status_text import Line, addresses, count, rate_text, remarks, summary, table

#: A queue that is as full as this is worth a warning.
_NEARLY_FULL = 0.8
_WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
#: Red and magenta can be read on light and on dark; the word is there in any case.
COLOURS = {"orphan": "red", "stalled": "red", "repaired": "magenta"}


@click.command("status")
@click.option(
    "--socket", "socket_path", envvar=SOCKET_VARIABLE, metavar="PATH", show_envvar=True, help="The control socket."
)
@click.option("--json", "as_json", is_flag=True, help="For programs: see docs/status.md.")
@click.option("--check", is_flag=True, help="One line for a monitoring system, and its exit codes: 0, 1, 2, 3.")
@click.option("--watch", is_flag=True, help="Show it again and again, with each queue's history, until Ctrl-C.")
@click.option("--interval", type=click.FloatRange(0.1), default=2.0, show_default=True, metavar="SECONDS",
              help="Of --watch.")  # fmt: skip
def status_command(socket_path: str | None, as_json: bool, check: bool, watch: bool, interval: float) -> None:
    """Show how every listener fares: its queue, its losses, who holds it.

    \b
    serving   somebody holds it, and nothing is known to be wrong
    repaired  a holder had shut it down, or changed its backlog, within the last hour
    stalled   clients wait, and nobody accepts them
    orphan    no process has it open: its clients wait for nobody

    Run it as root to see every holder. With --check, an orphan or a stalled listener is critical; drops, a queue that
    is 80 % full, a repair, and a socket that would not survive a crash of the binder are warnings.

    \b
    Example:
      multibinder status --json | jq -r '.listeners[] | select(.state == "orphan").address'
    """
    if as_json + check + watch > 1:
        raise click.UsageError("--json, --check and --watch exclude each other.")
    if check:
        _check(socket_path)
    if watch:
        from multibinder.cli.status_live import watch_status

        watch_status(socket_path, interval)
        return
    with Client(socket_path) as client:
        report = report_of(client)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report)))
        return
    if not report.listeners:
        click.echo("No listeners.", err=True)
    click.echo("\n".join(lines_of(report, shutil.get_terminal_size().columns, colour=wants_colour())), color=True)


def wants_colour() -> bool:
    """https://no-color.org; FORCE_COLOR for those who record."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def lines_of(report: Report, width: int, *, colour: bool) -> list[str]:
    lines = []
    if report.listeners:
        head, blocks = table(report, width)
        lines = [head.text, *(_coloured(line) if colour else line.text for block in blocks for line in block), ""]
    for sentence in [summary(report), *remarks(report)]:
        lines += _wrapped(sentence, width)
    return lines


def _wrapped(sentence: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(sentence, max(20, width), break_long_words=False, break_on_hyphens=False)


def _coloured(line: Line) -> str:
    if (name := COLOURS.get(line.state)) is None:
        return line.text
    return click.style(line.state, fg=name, bold=True) + line.text[len(line.state) :]


def _check(socket_path: str | None) -> None:
    try:
        with Client(socket_path) as client:
            code, text = judge(report_of(client))
    except (MultibinderError, OSError) as error:
        code, text = 3, str(error)
    click.echo(f"MULTIBINDER {_WORDS[code]} - {text}")
    sys.exit(code)


def judge(report: Report) -> tuple[int, str]:
    """The exit code of --check, and its line: text, and after a bar what a monitoring system draws."""
    rows = report.listeners
    orphans = [row for row in rows if row.state == "orphan"]
    stalled = [row for row in rows if row.state == "stalled"]
    repaired = [row for row in rows if row.repaired_at is not None and row.repaired_at > report.at - 3600]
    dropping = [row for row in rows if row.drops_per_s > 0]
    full = [row for row in rows if row.queue and row.queue >= _NEARLY_FULL * row.limit]
    loose = [row for row in rows if not row.kept] if report.binder["keeper"] is not None else []
    complaints = [
        f"{len(found)} {what}: {addresses(found, say=say)}"
        for what, found, say in (
            ("orphan" if len(orphans) == 1 else "orphans", orphans, _waiting),
            ("stalled", stalled, _waiting),
            ("dropping clients", dropping, lambda row: f"{row.address} ({rate_text(row.drops_per_s)}/s)"),
            ("nearly full", full, lambda row: f"{row.address} ({row.queue} of {row.limit})"),
            ("repaired", repaired, lambda row: row.address),
            ("not kept through a crash", loose, lambda row: row.address),
        )
        if found
    ]
    hidden = sum(1 for row in rows if row.holders is None)
    if hidden:
        complaints.append(f"holders of {hidden} hidden, so whether they are orphans is not known")
    code = 2 if orphans or stalled else 1 if dropping or full or repaired or loose else 0
    figures = {
        "listeners": f"{len(rows)};;;0;{report.binder['listeners_limit']}",
        "orphans": f"{len(orphans)};;0",
        "stalled": f"{len(stalled)};;0",
        "repaired": f"{len(repaired)};0",
        "hidden": f"{hidden}",
        "waiting": f"{sum(row.queue for row in rows)}",
        "fullest": f"{max((100 * row.queue / max(1, row.limit) for row in rows), default=0):.0f}%;80",
        "drops": f"{sum(row.drops for row in rows)}c",
        "drops_per_second": f"{sum(row.drops_per_s for row in rows):.2f};0",
        "descriptors": f"{report.binder['descriptors']};;;0;{report.binder['descriptors_limit']}",
    }
    text = "; ".join(complaints) if complaints else f"{count(len(rows), 'listener')} serving"
    if complaints and not code:
        text = f"{count(len(rows), 'listener')}; {text}"
    return code, f"{text} | {' '.join(f'{name}={value}' for name, value in figures.items())}"


def _waiting(row: Row) -> str:
    return f"{row.address} ({row.queue} waiting)"
