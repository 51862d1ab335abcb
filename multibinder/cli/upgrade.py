"""``multibinder upgrade``."""

from __future__ import annotations

import click

from multibinder import Client
from multibinder.cli.options import socket_option
from multibinder.cli.say import say

#: More than the 30 s that the binder gives the new version for its trial start.
_TIMEOUT_S = 45.0


@click.command("upgrade", short_help="Replace the running binder by the installed version, in place.")
@socket_option()
def upgrade_command(socket_path: str | None) -> None:
    """Replace the running binder by the version that is installed now, in place.

    The PID, the listeners and the control socket stay, and no client is refused. The binder first starts the new
    version on trial. If that fails, the binder goes on as it is, and this command says why and exits with 1.

    \b
    Example:
      pip install --upgrade multibinder && multibinder upgrade
    """
    with Client(socket_path, timeout=_TIMEOUT_S) as binder:
        upgraded = binder.upgrade()
        after = binder.hello()
    if after.upgrade_failure is not None:
        raise click.ClickException(
            f"could not upgrade: {after.upgrade_failure}; version {after.version} goes on, pid {after.pid}"
        )
    say(f"upgraded: {upgraded.before} -> {after.version}, pid {after.pid}")
