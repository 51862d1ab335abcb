"""``multibinder serve``."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable
from typing import TypeVar

import click
import msgspec

from multibinder import SOCKET_VARIABLE, Address, AddressError
from multibinder.binder import daemon
from multibinder.binder.health_monitor import OrphanTtl
from multibinder.binder.quotas import Limits
from multibinder.cli.binder_main import Invocation, command
from multibinder.cli.detach import detach as go_to_the_background
from multibinder.cli.guard_main import command as guard_command

_DEFAULTS = Limits()
_F = TypeVar("_F", bound=Callable[..., object])


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


class _OrphanTtl(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    name = "ttl"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> OrphanTtl:
        if isinstance(value, OrphanTtl):
            return value
        of, _, time = str(value).rpartition("=")
        with contextlib.suppress(AddressError):
            of = str(Address.parse(of))  # as the binder writes it
        if time == "off":
            return OrphanTtl(of, None)
        found = re.fullmatch(r"([0-9]+)(s|m|h|d)", time)
        if found is None:
            self.fail(f"{time!r} is no time: write a number and its unit (s, m, h, d), as in 10m, or off", param, ctx)
        return OrphanTtl(of, int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]])


def _limit(flag: str, field: str, text: str, least: int = 1) -> Callable[[_F], _F]:
    unit = "BYTES" if field.endswith("_bytes") else "N"
    default = getattr(_DEFAULTS, field)
    return click.option(flag, field, type=click.IntRange(least), default=default, metavar=unit, help=text)


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
@click.option("--policy", metavar="FILE", show_default=f"{daemon.DEFAULT_POLICY}, if it is there",
              help="Who may ask for what (see 'multibinder policy').")  # fmt: skip
@_limit("--max-listeners", "listeners", "Listeners held at once.")
@_limit("--max-listeners-per-uid", "listeners_per_uid", "Listeners that one uid may have a claim to.")
@_limit("--max-clients", "clients", "Clients connected at once.")
@_limit("--max-clients-per-uid", "clients_per_uid", "Clients of one uid connected at once.")
@_limit("--max-rate", "rate", "Requests a second; a large one counts as several.")
@_limit("--max-rate-per-uid", "rate_per_uid", "Requests a second of one uid.")
@_limit("--max-in-flight", "in_flight", "Descriptors sent to clients that have not read them yet.")
@_limit("--max-in-flight-per-uid", "in_flight_per_uid", "The same for one uid.")
@_limit("--max-request", "request_bytes", "Size of one request.", least=64)
@click.option("--request-timeout", type=click.FloatRange(0.1), default=_DEFAULTS.timeout_s, metavar="SECONDS",
              help="For the rest of a half-sent request, and for a client to read its answer.")  # fmt: skip
@click.option("--orphan-ttl", type=_OrphanTtl(), multiple=True, metavar="[OF=]TIME",
              help="Close a listener that no process has had open for so long, as in 10m. OF: an owner's label (as "
              "haproxy@*) or an address; again for more; 'off' for an exception.")  # fmt: skip
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
    policy: str | None,
    request_timeout: float,
    orphan_ttl: tuple[OrphanTtl, ...],
    recover: bool,
    detach: bool,
    pidfile: str | None,
    log_file: str | None,
    guard: bool,
    log_format: str,
    verbose: bool,
    quiet: bool,
    **limits: int,
) -> None:
    """Run the binder: own listening sockets and hand them to clients.

    Runs in the foreground and logs to stderr. SIGTERM and SIGINT stop it, SIGHUP reads the policy again, SIGUSR1
    upgrades it in place. Limits for one uid do not hold for root and the binder's own user.

    \b
    Example:
      multibinder serve --socket /run/multibinder/control.sock --group haproxy
    """
    settings = daemon.Settings(
        socket_path=os.path.abspath(socket_path) if detach else socket_path,
        mode=mode if mode is not None else 0o660 if group else 0o600,
        group=group,
        policy=os.path.abspath(policy) if policy else None,
        orphan_ttl=orphan_ttl,
        recover=recover,
        pidfile=os.path.abspath(pidfile) if pidfile else None,
        limits=Limits(timeout_s=request_timeout, **limits),
    )
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    invocation = msgspec.json.encode(
        Invocation(settings, log_format, level, os.path.abspath(log_file) if log_file else None)
    ).decode()
    if detach:
        go_to_the_background()
    program = (guard_command if guard else command)(invocation)
    os.execv(program[0], program)
