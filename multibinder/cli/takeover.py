"""``multibinder systemd takeover``: a unit of the distribution serves on sockets that the binder holds, and back."""

from __future__ import annotations

import os
import sys

import click

from multibinder.cli.say import say
from multibinder.cli.takeover_steps import Steps, read
from multibinder.launch.errors import LaunchError
from multibinder.launch.styles import STYLES


@click.command("takeover", short_help="Put a unit's server on the binder's sockets, without a restart.")
@click.option("--dry-run", is_flag=True, help="Show the drop-in and what would be done, and change nothing.")
@click.option("--undo", is_flag=True, help="Put everything back: the unit binds its addresses by itself again.")
@click.option("--force", is_flag=True, help="Replace, or with --undo remove, a drop-in that was changed by hand.")
@click.option("--timeout", type=click.FloatRange(1), default=60.0, show_default=True, metavar="SECONDS",
              help="The time that a new server has to become ready.")  # fmt: skip
@click.option("--style", "styles", multiple=True, type=click.Choice(list(STYLES)),
              help="How a server that is not known is told of its listeners, as in 'multibinder exec'. It must open "
              "those that it does not get. May be repeated.")  # fmt: skip
@click.argument("unit")
def takeover_command(
    unit: str, dry_run: bool, undo: bool, force: bool, timeout: float, styles: tuple[str, ...]
) -> None:
    """Put a unit's server on the binder's sockets, without a restart and without a lost connection.

    A drop-in puts our command in front of the unit's own, which stays as it is, with its arguments, environment, limits
    and user. 'systemctl reload', 'restart' and 'stop' go on as before, and no client is refused meanwhile. If
    multibinder is uninstalled with the drop-in left behind, the unit starts as it did before.

    Run it again after an upgrade of the unit, after a change of its ExecStart=, or if it was interrupted: it does what
    is missing.

    \b
    Exit codes:
      0  The unit is taken over, or with --undo, it is as before.
      1  It is not; the message says why, and what serves now.
      2  Wrong usage.

    \b
    Example:
      multibinder systemd takeover haproxy.service --dry-run
      multibinder systemd takeover haproxy.service
      multibinder systemd takeover haproxy.service --undo
    """
    try:
        if os.geteuid() != 0 and not dry_run:
            raise LaunchError("only root can take a unit over: run this as root, or with --dry-run")
        steps = Steps(read(unit, reload=not dry_run), force=force, timeout_s=timeout, styles=styles)
        if dry_run:
            steps.show_undo() if undo else steps.show()
        elif undo:
            steps.undo()
        else:
            steps.takeover()
    except LaunchError as error:
        say(f"multibinder: {error}", err=True)
        sys.exit(1)
