"""``multibinder doctor``: what is wrong on this host, why it matters, and the line to type."""

from __future__ import annotations

import os
import stat
import sys
import textwrap
from pathlib import Path
from typing import Any

import click
import msgspec

from multibinder import SOCKET_VARIABLE, __version__
from multibinder.cli.systemd import InstallError, commands_directory, installed_units
from multibinder.observe.doctor.checks import diagnose
from multibinder.observe.doctor.facts import Unit
from multibinder.observe.doctor.finding import Finding, Unchecked
from multibinder.observe.doctor.reader import read_facts

#: Of the JSON below; a change that an old reader would misread raises it.
_FORMAT = 1
#: Where our unit has it.
_USUAL_SOCKET = "/run/multibinder/control.sock"

OK, WARNING, PROBLEM, UNKNOWN = range(4)
_WORDS = {OK: "ok", WARNING: "warning", PROBLEM: "problem", UNKNOWN: "unknown"}


class Report(msgspec.Struct, frozen=True):
    """What ``--json`` prints. ``status``: ok, warning, problem or unknown, as the exit code 0, 1, 2 or 3 says it."""

    version: int
    multibinder: str
    status: str
    binder: bool
    findings: list[Finding]
    unchecked: list[Unchecked]


class _Command(click.Command):
    """Wrong usage is 3 here, as for a monitoring plugin: 2 says that clients are lost."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **options)
        except click.UsageError as error:
            error.exit_code = UNKNOWN  # type: ignore[misc]
            raise


@click.command("doctor", cls=_Command)
@click.option(
    "--socket", "socket_path", envvar=SOCKET_VARIABLE, metavar="PATH", show_envvar=True,
    help=f"The binder's control socket. Default: {_USUAL_SOCKET}, if there is one.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object.")
@click.option("--prefix", default="/", metavar="DIR", show_default=True, type=click.Path(file_okay=False),
              help="Where the unit files were installed.")  # fmt: skip
def doctor_command(socket_path: str | None, as_json: bool, prefix: str) -> None:
    """Check this host: what loses clients, or will, with the reason and the remedy of each.

    Changes nothing. Works also without a binder, as far as it can; as root it sees more.

    \b
    Exit codes, as of a monitoring plugin:
      0  nothing is wrong (there may be notes)
      1  a warning: nothing is lost now, but will be when something else happens
      2  a problem: clients are lost or hang, or anybody can reach the binder
      3  nothing was found wrong, but something could not be checked; or wrong usage

    \b
    With --json: version (1; it grows when an old reader would misread), multibinder, status ("ok", "warning",
    "problem", "unknown"), binder (whether one answered), findings (check, level, what, where, why, remedy), unchecked
    (what, why, remedy).

    \b
    Example:
      multibinder doctor
      multibinder doctor --json | jq -r '.findings[] | select(.level == "problem") | .what'
    """
    if socket_path is None and _is_socket(_USUAL_SOCKET):
        socket_path = _USUAL_SOCKET
    unchecked: list[Unchecked] = []
    units: list[Unit] = []
    wrapper = None
    try:
        wrapper = str(commands_directory() / "multibinder-haproxy")
        units = [Unit(str(path), state) for path, state in installed_units(Path(prefix).absolute())]
    except InstallError as error:
        unchecked.append(Unchecked("the unit files", str(error)))
    facts = read_facts(__version__, socket_path, units, prefix, wrapper)
    findings = diagnose(facts)
    unchecked = [*facts.unchecked, *unchecked]
    if socket_path is not None and facts.binder is None:
        why = next((each.why for each in unchecked if each.what.startswith("the binder")), "")
        findings.insert(0, _no_binder(socket_path, why))
        unchecked = [each for each in unchecked if not each.what.startswith("the binder")]
    code = _exit_code(findings, unchecked)
    report = Report(_FORMAT, __version__, _WORDS[code], facts.binder is not None, findings, unchecked)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report)))
    else:
        _print(report)
    sys.exit(code)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _no_binder(path: str, why: str) -> Finding:
    return Finding(
        "binder",
        "problem",
        "the binder does not answer",
        path,
        f"Servers that are running go on, but cannot get a socket, not at a restart nor for a new port ({why})",
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
    """For people: in 80 columns, in a pipe, with and without colour; the line to type is never broken in two."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)

    def paragraph(word: str, style: str, text: str) -> None:
        first, *rest = textwrap.wrap(f"{word} {text}", console.width, subsequent_indent="  ")
        console.print(Text.assemble((word, style), first[len(word) :]))
        for line in rest:
            console.print(Text(line))

    # Colours that are as good on a light terminal as on a dark one; the word says it without them.
    styles = {"problem": "bold red", "warning": "bold magenta", "note": "bold"}
    for finding in report.findings:
        paragraph(finding.level.upper(), styles[finding.level], f" {finding.what}")
        paragraph("  where:", "", finding.where)
        paragraph("  why:", "", finding.why)
        console.print(Text.assemble("  do: ", (finding.remedy, "bold")))
        console.print()
    for each in report.unchecked:
        paragraph("NOT CHECKED", "bold", f" {each.what}: {each.why}")
        if each.remedy:
            console.print(Text.assemble("  do: ", (each.remedy, "bold")))
    if report.unchecked:
        console.print()
    console.print(Text(_summary(report)))


def _summary(report: Report) -> str:
    counted = []
    for level in ("problem", "warning", "note"):
        count = sum(finding.level == level for finding in report.findings)
        if count:
            counted.append(f"{count} {level}{'s' if count > 1 else ''}")
    if report.unchecked:
        counted.append(f"{len(report.unchecked)} not checked")
    return ", ".join(counted) or "Nothing is wrong."
