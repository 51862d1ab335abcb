"""``multibinder doctor``: the command, its report in two forms, and its exit codes."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import click
import msgspec

from multibinder import __version__
from multibinder.cli.installation import InstallError, commands_directory
from multibinder.cli.options import socket_option
from multibinder.cli.say import say_json
from multibinder.cli.systemd import installed_units
from multibinder.cli.wording import count
from multibinder.kernel.process import printable
from multibinder.launch.run.files import RUNTIME_DIR_VARIABLE, default_runtime_directory
from multibinder.observe.doctor.checks import diagnose
from multibinder.observe.doctor.facts import Unit
from multibinder.observe.doctor.finding import Finding, Unchecked
from multibinder.observe.doctor.reader import read_facts

#: The version of the JSON. A change that an old reader would misread raises it.
_FORMAT = 1

OK, WARNING, PROBLEM, UNKNOWN = range(4)
_WORDS = {OK: "ok", WARNING: "warning", PROBLEM: "problem", UNKNOWN: "unknown"}


class Report(msgspec.Struct, frozen=True):
    """The object that ``--json`` prints. ``status`` is ok, warning, problem or unknown: exit code 0, 1, 2 or 3."""

    version: int
    multibinder: str
    status: str
    binder: bool
    findings: list[Finding]
    unchecked: list[Unchecked]


class _Command(click.Command):
    """A command whose exit code for wrong usage is 3, because 2 means that clients are lost."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **options)
        except click.UsageError as error:
            error.exit_code = UNKNOWN  # type: ignore[misc]
            raise


@click.command("doctor", cls=_Command, short_help="Check this host for what loses clients, and name the remedies.")
@socket_option(required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.option("--prefix", default="/", metavar="DIR", show_default=True, type=click.Path(file_okay=False),
              help="The root directory that the unit files were installed into.")  # fmt: skip
def doctor_command(socket_path: str | None, as_json: bool, prefix: str) -> None:
    """Check this host for what loses clients, or will lose them, and name the reason and the remedy of each.

    It changes nothing. Without a binder it checks what it can. Root sees more than other users.

    \b
    Exit codes, as of a monitoring plugin:
      0  Nothing is wrong. There may be notes.
      1  Warning: nothing is lost now, but something will be when another fault is added.
      2  Problem: clients are lost or wait in vain, or every user can reach the binder.
      3  Nothing wrong was found, but something could not be checked; or wrong usage.

    \b
    The JSON object:
      version      The version of this format, 1. A change that an old reader would misread raises it.
      multibinder  The version of this program.
      status       "ok", "warning", "problem" or "unknown": exit code 0, 1, 2 or 3.
      binder       Whether a binder answered.
      findings     A list of objects with check, level, what, where, why, remedy.
      unchecked    A list of objects with what, why, remedy.

    \b
    Example:
      multibinder doctor
      multibinder doctor --json | jq -r '.findings[] | select(.level == "problem") | .what'
    """
    report, code = _examine(socket_path, prefix)
    if as_json:
        say_json(report)
    else:
        _print(report)
    sys.exit(code)


def _examine(socket_path: str | None, prefix: str) -> tuple[Report, int]:
    """Return the report of this host, and the exit code."""
    unchecked: list[Unchecked] = []
    units: list[Unit] = []
    wrapper = None
    try:
        wrapper = str(commands_directory() / "multibinder-haproxy")
        units = [Unit(str(path), state) for path, state in installed_units(Path(prefix).absolute())]
    except InstallError as error:
        unchecked.append(Unchecked("the unit files", str(error)))
    runs = os.environ.get(RUNTIME_DIR_VARIABLE) or default_runtime_directory()
    facts = read_facts(__version__, socket_path, units, prefix, wrapper, runs)
    findings = diagnose(facts)
    unchecked = [*facts.unchecked, *unchecked]
    if socket_path is not None and facts.binder is None:
        # One finding that says why the binder does not answer replaces the list of checks that need it.
        why = next((each.why for each in unchecked if _is_about_the_binder(each)), "")
        findings.insert(0, _no_binder(socket_path, why))
        unchecked = [each for each in unchecked if not _is_about_the_binder(each)]
    code = _exit_code(findings, unchecked)
    return Report(_FORMAT, __version__, _WORDS[code], facts.binder is not None, findings, unchecked), code


def _is_about_the_binder(unchecked: Unchecked) -> bool:
    return unchecked.what.startswith("the binder")


def _no_binder(path: str, why: str) -> Finding:
    return Finding(
        "binder",
        "problem",
        "the binder does not answer",
        path,
        f"Running servers go on, but no server can get a socket, neither at a restart nor for a new port ({why})",
        "systemctl start multibinder",
    )


def _exit_code(findings: list[Finding], unchecked: list[Unchecked]) -> int:
    levels = {finding.level for finding in findings}
    if "problem" in levels:
        return PROBLEM
    if "warning" in levels:
        return WARNING
    return UNKNOWN if unchecked else OK


def _print(report: Report) -> None:
    """Print the report for people, wrapped to the terminal. The command of a remedy is never broken in two."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)

    def paragraph(word: str, style: str, text: str) -> None:
        first, *rest = textwrap.wrap(printable(f"{word} {text}"), console.width, subsequent_indent="  ")
        console.print(Text.assemble((word, style), first[len(word) :]))
        for line in rest:
            console.print(Text(line))

    # These colours are readable on a light and on a dark background. The level is also written out.
    styles = {"problem": "bold red", "warning": "bold magenta", "note": "bold"}
    for finding in report.findings:
        paragraph(finding.level.upper(), styles[finding.level], f" {finding.what}")
        paragraph("  where:", "", finding.where)
        paragraph("  why:", "", finding.why)
        console.print(Text.assemble("  do: ", (printable(finding.remedy), "bold")))
        console.print()
    for each in report.unchecked:
        paragraph("NOT CHECKED", "bold", f" {each.what}: {each.why}")
        if each.remedy:
            console.print(Text.assemble("  do: ", (printable(each.remedy), "bold")))
    if report.unchecked:
        console.print()
    console.print(Text(_summary(report)))


def _summary(report: Report) -> str:
    counted = []
    for level in ("problem", "warning", "note"):
        if number := sum(finding.level == level for finding in report.findings):
            counted.append(count(number, level))
    if report.unchecked:
        counted.append(f"{len(report.unchecked)} not checked")
    return ", ".join(counted) or "Nothing is wrong."
