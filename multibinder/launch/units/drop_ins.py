"""The parts of drop-ins that all sorts of programs share.

Each command of ours is a line for /bin/sh with the unit's own command as its arguments. So systemd expands variables
and specifiers of that command exactly as it does without us, and the shell passes them on as they are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from multibinder.launch.units.unit import Unit
from multibinder.launch.units.unit_files import Command

#: The command that writes drop-ins, for their seal.
WRITER = "multibinder systemd takeover"
CONTROL = "/run/multibinder/control.sock"
#: For which results of a service systemd starts it again (systemd.service(5), Restart=), as a pattern of sh(1).
_RESTARTED_AFTER = {
    "always": "*",
    "on-success": "success",
    "on-failure": "exit-code|signal|core-dump|timeout|watchdog|oom-kill|protocol|resources",
    "on-abnormal": "signal|core-dump|timeout|watchdog|oom-kill",
    "on-abort": "signal|core-dump",
    "on-watchdog": "watchdog",
}


def head(unit: Unit, *, restarts: bool) -> str:
    """Return the part of a drop-in before its commands: the unit wants the binder, and starts after it.

    With ``restarts``, systemd never gives up to start a unit that it starts again by itself.
    """
    # A unit that has reached its start limit runs no command of ours: its ports would stay open without a server.
    [start] = unit.commands("ExecStart")
    own = unit.fact("SyslogIdentifier") or os.path.basename(start.program)
    limit, delay = "", ""
    if restarts and restarts_by_itself(unit):
        limit = "StartLimitIntervalSec=0\n"
        # A stop that comes in a delay before a restart runs no command of the unit.
        delay = "# Clients wait meanwhile, and a stop in a delay would leave the ports open.\nRestartSec=0\n"
    return f"""\
# {unit.name} on sockets that multibinder holds. 'multibinder systemd takeover --undo {unit.name}' takes it back.
# Where multibinder is not installed any more, the unit starts as it does without this file.

[Unit]
# Wants= and never Requires=: a stop or restart of the binder must not touch this unit.
Wants=multibinder.socket multibinder.service
After=multibinder.socket multibinder.service
{limit}
[Service]
# The journal would name the shell in front of the program.
SyslogIdentifier={own}
Environment=MULTIBINDER_SOCK={CONTROL}
{delay}"""


def in_unit(path: Path | str) -> str:
    """Return a path as a unit's command line has it."""
    return str(path).replace("%", "%%")


def shell(script: str, own: Command | None = None, prefixes: str | None = None) -> str:
    """Return the command that executes ``script`` with the words of a command of the unit as its arguments.

    The script must have neither single quotes nor backslashes. Its ``$`` are written so that systemd leaves them alone.
    """
    put = prefixes if prefixes is not None else own.prefixes if own is not None else ""
    dollar = "$" if ":" in put else "$$"
    line = f"{put}/bin/sh -c '{script.replace('$', dollar)}'"
    return f"{line} sh {own.text}" if own is not None else line


def setting(name: str, commands: Sequence[str]) -> str:
    """Return the lines that replace all commands of a setting."""
    return "".join(f"{name}={each}\n" for each in ("", *commands))


def restarts_by_itself(unit: Unit) -> bool:
    """Return whether systemd starts the unit again after an end that nobody asked for."""
    return unit.fact("Restart") in _RESTARTED_AFTER


def unless_started_again(unit: Unit) -> str:
    """Return a script that exits with 0 if systemd starts the unit again, in an ``ExecStopPost=``.

    systemd tells a stop from a restart only by the job.
    """
    pattern = _RESTARTED_AFTER.get(unit.fact("Restart"))
    by_itself = f'case "$SERVICE_RESULT" in {pattern}) exit 0 ;; esac ' if pattern else ""
    return (
        'case " $(systemctl list-jobs --no-legend "%n") " in *" stop "*) ;; *" restart "*|*" start "*) exit 0 ;; '
        f"*) {by_itself};; esac"
    )


IF_STOPPED = 'systemctl list-jobs --no-legend "%n" | grep -q " stop " || exit 0'
