"""``multibinder serve``."""

from __future__ import annotations

import logging
import os
import sys

import click
import msgspec

from multibinder import SOCKET_VARIABLE
from multibinder.binder import daemon
from multibinder.binder.server import Limits
from multibinder.cli.binder import Invocation

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
        socket_path=socket_path,
        mode=mode if mode is not None else 0o660 if group else 0o600,
        group=group,
        max_listeners=max_listeners,
        limits=Limits(max_request, max_clients, request_timeout),
    )
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    invocation = msgspec.json.encode(Invocation(settings, log_format, level)).decode()
    # -P: as root, never import from whatever directory we were started in.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "multibinder.cli.binder", invocation])
