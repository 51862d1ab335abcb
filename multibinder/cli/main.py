"""``multibinder``: the group of commands, and the old form ``multibinder PATH``."""

from __future__ import annotations

import importlib
import sys

import click

from multibinder import MultibinderError, __version__
from multibinder.cli.say import say
from multibinder.kernel.std_descriptors import open_std_descriptors

#: The module of each command. It is imported only if the command is used, which keeps every command fast to start.
_COMMANDS = {
    "serve": "multibinder.cli.serve",
    "exec": "multibinder.cli.exec",
    "run": "multibinder.cli.run",
    "instances": "multibinder.cli.instances",
    "reload": "multibinder.cli.reload",
    "stop": "multibinder.cli.stop",
    "status": "multibinder.cli.status",
    "list": "multibinder.cli.listeners",
    "release": "multibinder.cli.listeners",
    "move": "multibinder.cli.listeners",
    "adopt": "multibinder.cli.adopt",
    "doctor": "multibinder.cli.doctor",
    "exporter": "multibinder.cli.exporter",
    "upgrade": "multibinder.cli.upgrade",
    "policy": "multibinder.cli.policy",
    "systemd": "multibinder.cli.systemd",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(_COMMANDS[cmd_name]), f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # Units and scripts for the Ruby program run 'multibinder /run/multibinder.sock'.
        if args and "/" in args[0] and args[0] not in _COMMANDS:
            args = ["serve", "--socket", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="multibinder")
def multibinder() -> None:
    """Keep ports open while everything behind them restarts.

    The binder ('multibinder serve') owns the listening sockets. It hands them to programs over a Unix socket.

    \b
    Example:
      multibinder serve --socket /run/multibinder/control.sock
      export MULTIBINDER_SOCK=/run/multibinder/control.sock
      multibinder-haproxy run --name web -- /usr/sbin/haproxy -Ws -f /etc/haproxy/web.cfg.j2
    """


def main() -> None:
    """Run the console script. An error becomes a sentence on stderr and exit code 1; wrong usage is exit code 2."""
    open_std_descriptors()
    try:
        multibinder(prog_name="multibinder")
    except MultibinderError as error:
        say(f"multibinder: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        say(f"multibinder: {error.filename or ''}: {error.strerror or error}", err=True)
        sys.exit(1)
