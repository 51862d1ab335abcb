"""The commands in the drop-in of a unit that was taken over: ``multibinder systemd unit-start`` and its like.

They are for systemd; no person types them.
"""

from __future__ import annotations

import os
import subprocess
import sys

import click

from multibinder import Client
from multibinder.cli.become import say as say_to_log
from multibinder.cli.options import DEFAULT_SOCKET
from multibinder.cli.say import say
from multibinder.kernel import process
from multibinder.launch.styles import STYLES
from multibinder.launch.units import kept, kept_sync
from multibinder.launch.units.kept import Passing
from multibinder.launch.units.kept_start import start
from multibinder.wire.arguments import SOCKET_VARIABLE

#: The exit code of a shell for a command that cannot be executed.
_CANNOT_START = 127


def _socket_path() -> str:
    return os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET


@click.command("unit-start", hidden=True, context_settings={"allow_interspersed_args": False})
@click.option("--style", "styles", multiple=True, type=click.Choice(list(STYLES)), help="As in 'multibinder exec'.")
@click.option("--forks", is_flag=True, help="Return when the server is up (Type=forking).")
@click.option("--pid-file", default="", metavar="PATH", help="The unit's PIDFile=.")
@click.argument("unit")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARGUMENT]...")
def unit_start(styles: tuple[str, ...], forks: bool, pid_file: str, unit: str, command: tuple[str, ...]) -> None:
    """Start a unit's server on the listeners that the binder keeps for it (ExecStart=)."""
    try:
        start(Passing(unit, styles, forks, pid_file), command, _socket_path(), say_to_log)
    except OSError as error:
        say(f"multibinder: {command[0]}: {(error.strerror or str(error)).lower()}", err=True)
        sys.exit(_CANNOT_START)


@click.command("unit-sync", hidden=True)
@click.option("--reloaded", is_flag=True, help="The server was told to reload a moment ago.")
@click.option("--ready", is_flag=True, help="systemd knows that the server is ready (Type=notify, Type=forking).")
@click.argument("unit")
def unit_sync_command(reloaded: bool, ready: bool, unit: str) -> None:
    """Let the binder hold what a unit's server has opened, and release what it has closed.

    It is for ExecStartPost= and ExecReload=. Otherwise the ports that a reload adds would close at the next restart,
    and those that it drops would stay open without a server.
    """
    main_pid = int(os.environ.get("MAINPID") or 0)
    with Client(_socket_path()) as binder:
        if reloaded:
            kept_sync.wait_for_reload(main_pid, _began_us(unit))
        elif not ready and not kept_sync.wait_until_open(unit):
            return
        _adopt(unit, process.uid_of(main_pid) or 0)
        for listener, claim in kept_sync.not_open_any_more(binder, unit):
            binder.release([listener], owner=f"{claim.label}:{claim.uid}")
            say(f"{listener.address}: closed, because {unit} does not have it open any more")


@click.command("unit-release", hidden=True)
@click.option("--drain", default=0.0, metavar="SECONDS", type=click.FloatRange(0), help="As in 'multibinder release'.")
@click.argument("unit")
def unit_release(drain: float, unit: str) -> None:
    """Close the ports of a unit (ExecStop=, ExecStopPost=)."""
    with Client(_socket_path()) as binder:
        for address in kept.release(binder, unit, drain_s=drain):
            say(f"{address}: closed")


def _began_us(unit: str) -> int:
    """Return when the unit began to reload. 0 if systemd does not tell."""
    command = ["systemctl", "show", "--property", "StateChangeTimestampMonotonic", "--value", unit]
    try:
        told = subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()  # noqa: S603
    except OSError:
        return 0
    return int(told) if told.isdecimal() else 0


@click.command("unit-check", hidden=True)
def unit_check() -> None:
    """Ask the binder for its version, to see that this works in the context of a unit."""
    with Client(_socket_path()) as binder:
        binder.hello()


def _adopt(unit: str, uid: int) -> None:
    """Let the binder hold all listeners of the unit. What it holds already only gets the unit's claim."""
    owner = f"{kept.owner_of(unit)}:{uid}"
    command = [sys.executable, "-m", "multibinder", "adopt", "--socket", _socket_path(), "--unit", unit]
    done = subprocess.run([*command, "--owner", owner], check=False, capture_output=True, text=True)  # noqa: S603
    for line in (done.stdout + done.stderr).splitlines():
        if not line.endswith(": held already"):
            say(line, err=True)
