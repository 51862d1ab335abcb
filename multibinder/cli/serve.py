"""``multibinder serve``: check the options, then become the binder or its guard."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec

from multibinder import Address, AddressError
from multibinder.binder.orphan_ttl import OrphanTtl
from multibinder.binder.quotas import MAX_LISTENERS, Limits
from multibinder.binder.settings import DEFAULT_POLICY, Settings
from multibinder.cli.detach import detach
from multibinder.cli.invocation import Invocation, binder_command, guard_command
from multibinder.cli.options import server_socket_option
from multibinder.wire.arguments import PATH_BYTES

_DEFAULTS = Limits()
_F = TypeVar("_F", bound=Callable[..., object])


class ServeOptions(msgspec.Struct, frozen=True):
    """The options of ``multibinder serve`` as click parsed them. A field has the name of its click parameter."""

    socket_path: str
    mode: int | None
    group: str | None
    policy: str | None
    orphan_ttl: tuple[OrphanTtl, ...]
    recover: bool
    detach: bool
    pidfile: str | None
    log_file: str | None
    guard: bool
    log_format: str
    verbose: bool
    quiet: bool
    limits: Limits

    @classmethod
    def from_click(cls, parameters: dict[str, Any]) -> ServeOptions:
        """Return the options, with the parameters that are named like fields of Limits collected in ``limits``."""
        limits = Limits(**{name: parameters.pop(name) for name in Limits.__struct_fields__})
        return cls(**parameters, limits=limits)

    def invocation(self) -> Invocation:
        """Return the argument of the binder's process. A detached binder changes to /, so its paths are absolute."""
        settings = Settings(
            socket_path=self._absolute_socket_path(),
            mode=self.mode if self.mode is not None else 0o660 if self.group else 0o600,
            group=self.group,
            policy=_absolute(self.policy),
            orphan_ttl=self.orphan_ttl,
            recover=self.recover,
            pidfile=_absolute(self.pidfile),
            limits=self.limits,
        )
        level = logging.DEBUG if self.verbose else logging.WARNING if self.quiet else logging.INFO
        return Invocation(settings, self.log_format, level, _absolute(self.log_file))

    def _absolute_socket_path(self) -> str:
        """Return the absolute path, unless only the relative one is short enough for a Unix socket (unix(7))."""
        path = os.path.abspath(self.socket_path)
        return path if self.detach or len(os.fsencode(path)) <= PATH_BYTES else self.socket_path


class _ModeType(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic since click 8.4
    """A file mode in octal."""

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


class _OrphanTtlType(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A time, optionally for the listeners of one owner or address: ``10m``, ``haproxy@*=1h``, ``[::]:80=off``."""

    name = "ttl"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> OrphanTtl:
        if isinstance(value, OrphanTtl):
            return value
        pattern, _, time = str(value).rpartition("=")
        with contextlib.suppress(AddressError):
            pattern = str(Address.parse(pattern))  # the spelling that the binder compares with
        if time == "off":
            return OrphanTtl(pattern, None)
        found = re.fullmatch(r"([0-9]+)(s|m|h|d)", time)
        if found is None:
            self.fail(f"{time!r} is no time: write a number and its unit (s, m, h, d), as in 10m, or off", param, ctx)
        return OrphanTtl(pattern, int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]])


def _limit(flag: str, field: str, text: str, least: int = 1) -> Callable[[_F], _F]:
    """Return an option for a field of Limits."""
    unit = "BYTES" if field.endswith("_bytes") else "N"
    default = getattr(_DEFAULTS, field)
    return click.option(flag, field, type=click.IntRange(least), default=default, metavar=unit, help=text)


@click.command(
    "serve", context_settings={"show_default": True}, short_help="Run the binder, which owns the listening sockets."
)
@server_socket_option("The control socket, where clients connect.")
@click.option("--mode", type=_ModeType(), metavar="OCTAL", show_default="0600; 0660 with --group",
              help="The file mode of the control socket: who may connect.")  # fmt: skip
@click.option("--group", metavar="NAME", help="The group of the control socket.")
@click.option("--policy", metavar="FILE", show_default=f"{DEFAULT_POLICY}, if it exists",
              help="The policy file: which client may ask for what (see 'multibinder policy --help').")  # fmt: skip
@click.option("--max-listeners", "listeners", type=click.IntRange(1, MAX_LISTENERS), default=_DEFAULTS.listeners,
              metavar="N", help=f"The most listeners to hold, at most {MAX_LISTENERS}.")  # fmt: skip
@_limit("--max-listeners-per-uid", "listeners_per_uid", "The most listeners that one uid may have a claim to.")
@_limit("--max-clients", "clients", "The most clients connected at once.")
@_limit("--max-clients-per-uid", "clients_per_uid", "The most clients of one uid connected at once.")
@_limit("--max-rate", "rate", "The most requests a second. A large request counts as several.")
@_limit("--max-rate-per-uid", "rate_per_uid", "The most requests a second from one uid.")
@_limit("--max-in-flight", "in_flight", "The most descriptors sent to clients that have not read them yet.")
@_limit("--max-in-flight-per-uid", "in_flight_per_uid", "The most such descriptors for one uid.")
@_limit("--max-request", "request_bytes", "The largest request.", least=64)
@click.option("--request-timeout", "timeout_s", type=click.FloatRange(0.1), default=_DEFAULTS.timeout_s,
              metavar="SECONDS",
              help="How long a client may take to send the rest of a request, and to read an answer.")  # fmt: skip
@click.option("--orphan-ttl", type=_OrphanTtlType(), multiple=True, metavar="[OF=]TIME",
              help="Close a listener that no process has had open for this time, as in 10m. OF limits it to an owner's "
              "label (as in haproxy@*) or to an address, and 'off' makes an exception. May be repeated.")  # fmt: skip
@click.option("--recover/--no-recover", default=True,
              help="After a crash, take sockets back from processes that still hold them.")  # fmt: skip
@click.option("--detach", is_flag=True, help="Run in the background. Fails if the binder does not start.")
@click.option("--pidfile", metavar="PATH", help="Write the PID to this file.")
@click.option("--log-file", metavar="PATH",
              help="Append the log to this file instead of stderr. With --detach, stderr is not kept.")  # fmt: skip
@click.option("--guard", is_flag=True, help="Keep the sockets in a small parent process, for a host without systemd.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", help="The format of a log line.")
@click.option("-v", "--verbose", is_flag=True, help="Log every handoff too.")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings and errors only.")
def serve_command(**parameters: Any) -> None:
    """Run the binder, which owns the listening sockets and hands them to clients.

    It runs in the foreground and logs to stderr. The limits for one uid do not apply to root and to the binder's own
    user.

    \b
    Signals:
      SIGTERM, SIGINT  Stop.
      SIGHUP           Read the policy again.
      SIGUSR1          Upgrade in place to the installed version.

    \b
    Example:
      multibinder serve --socket /run/multibinder/control.sock --group haproxy
    """
    options = ServeOptions.from_click(parameters)
    invocation = msgspec.json.encode(options.invocation()).decode()
    if options.detach:
        detach()
    program = (guard_command if options.guard else binder_command)(invocation)
    os.execv(program[0], program)


def _absolute(path: str | None) -> str | None:
    return os.path.abspath(path) if path else None
