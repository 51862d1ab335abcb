"""``multibinder upgrade``."""

from __future__ import annotations

import click

from multibinder import SOCKET_VARIABLE, Client

#: The rehearsal of the new code limits itself to 30 s.
_TIMEOUT_S = 45.0


@click.command("upgrade")
@click.option(
    "--socket", "socket_path", envvar=SOCKET_VARIABLE, metavar="PATH", show_envvar=True, help="The control socket."
)
def upgrade_command(socket_path: str | None) -> None:
    """Have the running binder become the version that is installed now.

    Same PID, same listeners, same control socket; no client is refused. The new code is started on trial first: if it
    cannot start, the running binder goes on, and this says why and exits with 1.

    \b
    Example:
      pip install --upgrade multibinder && multibinder upgrade
    """
    with Client(socket_path, timeout=_TIMEOUT_S) as binder:
        upgraded = binder.upgrade()
        after = binder.hello()
    click.echo(f"upgraded: {upgraded.before} -> {after.version}, pid {after.pid}")
