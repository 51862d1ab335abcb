"""``multibinder serve``."""

from __future__ import annotations

import logging
import os

import click
import msgspec

from multibinder import SOCKET_VARIABLE
from multibinder.binder import daemon
from multibinder.binder.server import Limits
from multibinder.cli.binder import Invocation, command
from multibinder.cli.detach import detach as go_to_the_background
from multibinder.cli.guard import command as guard_command

_DEFAULTS = Limits()


class _Mode(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic since click 8.4
    name = "octal"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            mode = int(str(value), 8)
        except ValueError:
            mode = -1
        if not 0 <= mode <= 0o777:
            self.fail(f"{value!r} is no file mode: write it in octal, as in 0660", param, ctx)
        return mode


@click.command("serve", context_settings={"show_default": True})
@click.option(
    "--socket", "socket_path", envvar=SOCKET_VARIABLE, required=True, metavar="PATH", show_envvar=True,
    help="Where clients connect.",
)  # fmt: skip
@click.option(
    "--mode", type=_Mode(), metavar="OCTAL", show_default="0600; 0660 with --group",
    help="Who may connect: the control socket's file mode.",
)  # fmt: skip
@click.option("--group", metavar="NAME", help="The control socket's group.")
@click.option("--max-listeners", type=click.IntRange(1), default=16384, help="Listeners held at once.")
@click.option("--max-clients", type=click.IntRange(1), default=_DEFAULTS.clients, help="Clients connected at once.")
@click.option("--max-request", type=click.IntRange(64), default=_DEFAULTS.request_bytes, metavar="BYTES",
              help="Size of one request.")  # fmt: skip
@click.option("--request-timeout", type=click.FloatRange(0.1), default=_DEFAULTS.timeout_s, metavar="SECONDS",
              help="For the rest of a half-sent request, and for a client to read its answer.")  # fmt: skip
@click.option("--recover/--no-recover", default=True, help="Get sockets back from processes that hold them still.")
@click.option("--detach", is_flag=True, help="Run in the background; fails if the binder does not start.")
@click.option("--pidfile", metavar="PATH", help="Where to write the PID.")
@click.option("--log-file", metavar="PATH", help="Log there instead of to stderr; --detach needs it to log at all.")
@click.option("--guard", is_flag=True, help="Keep the sockets in a small parent process, where there is no systemd.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", help="Of the lines on stderr.")
@click.option("-v", "--verbose", is_flag=True, help="Log every handoff too.")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings and errors only.")
def serve_command(
    socket_path: str,
    mode: int | None,
    group: str | None,
    max_listeners: int,
    max_clients: int,
    max_request: int,
    request_timeout: float,
    recover: bool,
    detach: bool,
    pidfile: str | None,
    log_file: str | None,
    guard: bool,
    log_format: str,
    verbose: bool,
    quiet: bool,
) -> None:
    """Run the binder: own listening sockets and hand them to clients.

    Runs in the foreground and logs to stderr. SIGTERM and SIGINT stop it.

    \b
    Example:
      multibinder serve --socket /run/multibinder/control.sock --group haproxy
    """
    settings = daemon.Settings(
        socket_path=os.path.abspath(socket_path) if detach else socket_path,
        mode=mode if mode is not None else 0o660 if group else 0o600,
        group=group,
        max_listeners=max_listeners,
        recover=recover,
        pidfile=os.path.abspath(pidfile) if pidfile else None,
        limits=Limits(max_request, max_clients, request_timeout),
    )
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    invocation = msgspec.json.encode(
        Invocation(settings, log_format, level, os.path.abspath(log_file) if log_file else None)
    ).decode()
    if detach:
        go_to_the_background()
    program = (guard_command if guard else command)(invocation)
    os.execv(program[0], program)
