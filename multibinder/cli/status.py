"""``multibinder status``: the command and its four forms of output."""

from __future__ import annotations

import shutil
import sys

import click

from multibinder import Client, MultibinderError
from multibinder.cli.options import socket_option
from multibinder.cli.say import say, say_json, say_rows
from multibinder.cli.status_check import UNKNOWN, WORDS, judge
from multibinder.cli.status_report import report_of
from multibinder.cli.status_text import lines_of, wants_colour


@click.command("status", short_help="Show the queue, losses, holders and state of each listener.")
@socket_option()
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object (docs/status.md).")
@click.option("--check", is_flag=True, help="Print one line for a monitoring system, and exit with its code.")
@click.option("--watch", is_flag=True, help="Refresh the table, with each queue's history, until Ctrl-C.")
@click.option("--interval", type=click.FloatRange(0.1), default=2.0, show_default=True, metavar="SECONDS",
              help="The time between two refreshes of --watch.")  # fmt: skip
def status_command(socket_path: str | None, as_json: bool, check: bool, watch: bool, interval: float) -> None:
    """Show the queue, the losses, the holders and the state of each listener.

    \b
    States:
      serving   A process holds it, and no fault is known.
      repaired  Within the last hour a holder shut it down or changed its backlog, and the binder restored it.
      stalled   Clients wait, and no process accepts them.
      orphan    No process has it open. Its clients connect and wait.

    Only root sees the holders in every process.

    \b
    Exit codes of --check:
      0  OK.
      1  Warning: drops, a queue that is 80 % full, a repair, or a socket that a crash of the binder would close.
      2  Critical: an orphan or a stalled listener.
      3  Unknown: the binder does not answer.

    \b
    Example:
      multibinder status --json | jq -r '.listeners[] | select(.state == "orphan").address'
    """
    if as_json + check + watch > 1:
        raise click.UsageError("--json, --check and --watch exclude each other.")
    if check:
        _check(socket_path)
    if watch:
        from multibinder.cli.status_live import watch_status  # imports rich, which the other forms do not need

        watch_status(socket_path, interval)
        return
    with Client(socket_path) as client:
        report = report_of(client)
    if as_json:
        say_json(report)
        return
    if not report.listeners:
        say("No listeners.", err=True)
    say_rows(lines_of(report, shutil.get_terminal_size().columns, colour=wants_colour()))


def _check(socket_path: str | None) -> None:
    try:
        with Client(socket_path) as client:
            code, text = judge(report_of(client))
    except (MultibinderError, OSError) as error:
        code, text = UNKNOWN, str(error)
    say(f"MULTIBINDER {WORDS[code]} - {text}")
    sys.exit(code)
