"""``multibinder run``: check the options, and become the process that starts and reloads the copies.

That process is ``run_main``, which needs a tenth of the memory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from multibinder import SOCKET_VARIABLE, AddressError, ArgumentError, ConfigurationError
from multibinder.cli.option_groups import GroupedCommand
from multibinder.cli.options import socket_option
from multibinder.cli.say import say
from multibinder.launch import binds, known_programs, style_choice
from multibinder.launch.direct.slots import address_of
from multibinder.launch.errors import LaunchError, UsageError
from multibinder.launch.exec import failure
from multibinder.launch.instance_files import check_name
from multibinder.launch.run import config as config_file
from multibinder.launch.run.files import (
    RUNTIME_DIR_VARIABLE,
    RunInstance,
    default_runtime_directory,
)
from multibinder.launch.run.options import overlaid, settings_of
from multibinder.launch.run.report import CONTROL_SOCKET
from multibinder.launch.run.settings import RunSettings, ServiceOptions, ServiceSettings
from multibinder.launch.styles import STYLES, draft, placeholders
from multibinder.launch.styles.errors import StyleError
from multibinder.launch.styles.passed import Passed
from multibinder.wire.addresses import Address
from multibinder.wire.arguments import PATH_BYTES, control_path, wait_s
from multibinder.wire.options import check_owner

MODULE = "multibinder.cli.run_main"
_FAILED, _USAGE = 1, 2

_GROUPS = {
    "What runs": ("name", "config", "bind", "style", "env", "env_file", "directory", "instances"),
    "Ready": (
        "ready_http", "ready_tcp", "ready_line", "ready_notify", "ready_einhorn", "ready_after", "ready_timeout",
        "stable_for",
    ),
    "Reload and stop": (
        "max_overlap", "canary", "canary_for", "stop_signal", "drain_timeout", "keep_listeners", "give_up_after",
    ),
    "Hooks": ("pre_start", "post_ready", "pre_stop", "hook_timeout"),
}  # fmt: skip


def _checked(check: Callable[[Any], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return a callback of an option. What ``check`` refuses is wrong usage."""

    def callback(_: click.Context, param: click.Parameter, value: Any) -> Any:
        if value is None or value == ():
            return None
        try:
            return check(value)
        except (AddressError, ArgumentError, LaunchError) as error:
            raise click.BadParameter(str(error), param=param) from error

    return callback


def _variables(texts: tuple[str, ...]) -> dict[str, str]:
    for text in texts:
        if "=" not in text or text.startswith("="):
            raise UsageError(f"{text!r} is not of the form KEY=VALUE")
    return dict(text.split("=", 1) for text in texts)


def _env_file(path: str) -> str:
    optional = "-" if path.startswith("-") else ""
    return optional + os.path.abspath(path.removeprefix("-"))


@click.command(
    "run",
    cls=GroupedCommand,
    groups=_GROUPS,
    short_help="Run a command, and reload it with overlap and rollback.",
    context_settings={"allow_interspersed_args": False},
)
@click.option("--name", required=True, callback=_checked(check_name),
              help="The name of the instance, for 'reload', 'stop' and 'instances'.")  # fmt: skip
@click.option("--config", metavar="FILE.toml", callback=_checked(os.path.abspath),
              help="Read these options from a file, also at each reload: 'command = [...]', 'bind = [...]', and the "
              "names below. The command line wins.")  # fmt: skip
@click.option("-b", "--bind", multiple=True, metavar="ADDRESS[,OPTION=VALUE…][=NAME]",
              callback=_checked(lambda texts: binds.parse_all(list(texts))),
              help="A listener, as for 'exec'. NAME is for {NAME}. May be repeated.")  # fmt: skip
@click.option("--style", multiple=True, type=click.Choice(list(STYLES)), callback=_checked(list),
              help="How the command is told of its listeners, as for 'exec'. May be repeated.")  # fmt: skip
@click.option("--env", multiple=True, metavar="KEY=VALUE", callback=_checked(_variables),
              help="A variable for the command; {NAME} is a descriptor. May be repeated.")  # fmt: skip
@click.option("--env-file", metavar="FILE", callback=_checked(_env_file),
              help="Variables as in systemd's EnvironmentFile=, read at each start of a copy. With '-' before it, it "
              "may be missing.")  # fmt: skip
@click.option("--directory", metavar="DIR", callback=_checked(os.path.abspath),
              help="The working directory of the command. A symbolic link is followed at each start.")  # fmt: skip
@click.option("--instances", type=int, metavar="N", help="The number of copies.  [default: 1]")
@click.option("--ready-http", metavar="URL",
              help="Ready when it answers with 2xx or 3xx. {ready} is a private address of the new copy.")  # fmt: skip
@click.option("--ready-tcp", metavar="ADDRESS", help="Ready when the new copy accepts a connection there.")
@click.option("--ready-line", metavar="REGEX", help="Ready when a line of its output matches.")
@click.option("--ready-notify", is_flag=True, default=None, help="Ready when it sends READY=1 (sd_notify), only.")
@click.option("--ready-einhorn", is_flag=True, default=None, help="Ready when it acknowledges, as under einhorn.")
@click.option("--ready-after", type=float, metavar="SECONDS", help="Ready when it has run for so long.")
@click.option("--ready-timeout", type=float, metavar="SECONDS",
              help="The time limit of readiness. A copy that is not ready is ended.  [default: 60]")  # fmt: skip
@click.option("--stable-for", type=float, metavar="SECONDS",
              help="At a reload, the new copy must be ready for so long before the old one is told to finish.  "
              "[default: 2]")  # fmt: skip
@click.option("--max-overlap", type=int, metavar="N",
              help="The copies that a reload may add to the others. 0: stop, then start.  [default: 1]")  # fmt: skip
@click.option("--canary", metavar="N|PERCENT%",
              help="At a reload replace so many copies, and wait for 'reload --continue' or '--abort'.")  # fmt: skip
@click.option("--canary-for", type=float, metavar="SECONDS",
              help="Go on by itself after this time without a crash of a canary.")  # fmt: skip
@click.option("--stop-signal", metavar="SIGNAL", help="What tells a copy to finish.  [default: TERM]")
@click.option("--drain-timeout", type=float, metavar="SECONDS",
              help="The time to finish; then it is killed.  [default: 60]")  # fmt: skip
@click.option("--keep-listeners", is_flag=True, default=None,
              help="Leave the ports open at the end, for the next start. Clients wait meanwhile.")  # fmt: skip
@click.option("--give-up-after", type=float, metavar="SECONDS",
              help="Close the ports of a command that cannot be started for so long.  [default: 600]")  # fmt: skip
@click.option("--pre-start", metavar="COMMAND", help="A shell command before a copy starts.")
@click.option("--post-ready", metavar="COMMAND", help="A shell command when a copy is ready. A failure rolls back.")
@click.option("--pre-stop", metavar="COMMAND", help="A shell command before a copy is told to finish.")
@click.option("--hook-timeout", type=float, metavar="SECONDS", help="The time limit of each.  [default: 30]")
@click.option("--adopt", is_flag=True,
              help="Take the listeners over from the server that has them, and end it when the copies are ready. For "
              "root.")  # fmt: skip
@click.option("--owner", metavar="LABEL", callback=_checked(check_owner),
              help="The owner of the listeners.  [default: run@NAME]")  # fmt: skip
@click.option("--wait", type=float, metavar="SECONDS", callback=_checked(wait_s),
              help="The time to wait for a binder that does not answer yet.  [default: 10]")  # fmt: skip
@socket_option(required=False)
@click.option("--runtime-dir", envvar=RUNTIME_DIR_VARIABLE, show_envvar=True, metavar="DIR",
              default=default_runtime_directory, show_default="/run/multibinder-run for root",
              help="The directory of the instances.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Fail if FILE.toml is broken, instead of using the last good settings.")
@click.option("-v", "--verbose", is_flag=True, help="Say more about each step.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND [ARGUMENT]...]")
def run_command(
    name: str,
    config: str | None,
    runtime_dir: str,
    socket_path: str | None,
    strict: bool,
    verbose: bool,
    adopt: bool,
    owner: str | None,
    wait: float | None,
    give_up_after: float | None,
    keep_listeners: bool | None,
    command: tuple[str, ...],
    **service: Any,
) -> None:
    """Run a command with listeners of the binder; restart it after a crash; reload it without losing a client.

    A reload ('multibinder reload NAME', SIGHUP) starts a new copy beside the old one, waits until it is ready, and
    tells the old one to finish. If the new one fails, it is ended, the old one serves on, and the reload says why.

    Without a check, a copy is ready when it sends READY=1, or waits for clients on its listeners.

    \b
    Exit codes:
      0    It was told to end, and every copy has ended by itself or by the stop signal.
      1    It failed, or a copy had to be killed.
      2    Wrong usage.
      126  COMMAND cannot be executed.
      127  There is no COMMAND.

    \b
    Example:
      multibinder run --name web -b 0.0.0.0:8000 -- gunicorn app:app
      multibinder run --name web -b '[::]:8000=web' --ready-http http://{web}/health -- uvicorn --fd {web} app:app
      multibinder run --name web --config /etc/multibinder/run/web.toml
    """
    given = ServiceOptions(command=list(command) or None, **service)
    try:
        path = control_path(socket_path) if socket_path else None
        settings, start, fallback = _settings(RunInstance(runtime_dir, name), config, given, strict)
        _check(settings)
        _check_paths(RunInstance(runtime_dir, name))
    except (UsageError, ConfigurationError, StyleError) as error:
        _fail(str(error), _USAGE)
    except (LaunchError, OSError) as error:
        _fail(str(error), _FAILED)
    if path is None:
        say(
            f"multibinder run: no binder is named by --socket or {SOCKET_VARIABLE}: 'run' binds the ports itself, and "
            "they close when it ends",
            err=True,
        )
    usual = RunSettings("", "", None, settings)
    run_settings = RunSettings(
        name=name,
        directory=os.path.abspath(runtime_dir),
        socket=path,
        service=settings,
        given=given,
        owner=owner or start.owner or f"run@{name}",
        config=config,
        wait_s=_first(wait, start.wait, usual.wait_s),
        give_up_after_s=_first(give_up_after, start.give_up_after, usual.give_up_after_s),
        keep_listeners=bool(_first(keep_listeners, start.keep_listeners, False)),
        strict=strict,
        fallback=fallback,
        verbose=verbose,
    )
    if adopt:
        _adopt(run_settings)
    _become(run_settings)


def _adopt(settings: RunSettings) -> None:
    """Take over from the server that serves, or end with the reason why that is not possible."""
    # Imported here: no other start of 'run' needs it.
    from multibinder.launch.run import switch

    if settings.socket is None:
        _fail(f"--adopt needs a binder: name it by --socket or {SOCKET_VARIABLE}", _USAGE)
    slots = [slot for bind in settings.service.binds for slot in bind.slots if not slot.get("netns")]
    try:
        addresses = [Address.parse(address_of(slot)) for slot in slots]
        switch.begin(RunInstance(settings.directory, settings.name), settings, addresses)
    except (LaunchError, AddressError, OSError) as error:
        _fail(str(error), _FAILED)


def _settings(
    instance: RunInstance, config: str | None, given: ServiceOptions, strict: bool
) -> tuple[ServiceSettings, config_file.StartOptions, str]:
    """Return what the command line and the file say, or the last good settings and why if the file is broken."""
    if config is None:
        return settings_of(given), config_file.StartOptions(), ""
    try:
        options, start = config_file.read(config, binds.parse_all)
        options = overlaid(options, given)
        binds.parse_all([bind.text for bind in options.bind or []])
        return settings_of(options), start, ""
    except (LaunchError, AddressError) as error:
        why = str(error) if config in str(error) else f"{config}: {error}"
        last_good = None if strict else instance.read_last_good()
        if last_good is None:
            raise LaunchError(why) from None
        say(f"multibinder run: warning: {why}\n  the last good settings are used", err=True)
        return last_good, config_file.StartOptions(), why


def _check(service: ServiceSettings) -> None:
    """Refuse a command that cannot be right, before anything is bound for it. Raises UsageError, StyleError."""
    if not service.binds:
        raise UsageError(
            "no address is given: '-b ADDRESS', as in '-b 0.0.0.0:8000', or 'bind' in the file; a command without "
            "listeners needs no 'run'"
        )
    sockets = [Passed(slot, bind.name, -1) for bind in service.binds for slot in bind.slots]
    ready = service.ready
    has_ready = "ready" in placeholders.names_in([*service.command, *service.environment.values()])
    if not has_ready and "ready" in placeholders.names_in([ready.http or "", ready.tcp or ""]):
        raise UsageError(
            "the check of readiness asks at {ready}, and the command does not listen there: write {ready} in the "
            "command or in --env, where it is the descriptor"
        )
    private = [Passed({"host": "127.0.0.1", "port": 1}, "ready", -1)] if has_ready else []
    names = [bind.name for bind in service.binds]
    styles = style_choice.styles_for(service.styles, service.command, service.environment, names)
    made = draft.prepare(service.command, os.environ, sockets, styles, service.environment, private)
    named = style_choice.is_named(service.command, service.environment, names)
    for warning in [*made.warnings, known_programs.warning_about(service.command, sockets, styles, named)]:
        if warning:
            say(f"multibinder run: warning: {warning}", err=True)
    if service.environment_file or service.directory:
        return  # these decide where the command is
    try:
        draft.find(made.command[0], made.environment)
    except OSError as error:
        _fail(failure.sentence(error, made.command[0]), failure.exit_code(error))


def _check_paths(instance: RunInstance) -> None:
    """Refuse a directory in which a Unix socket cannot be bound. Raises UsageError."""
    longest = max(len(os.fsencode(instance.path(name))) for name in (CONTROL_SOCKET, "notify.sock", "einhorn.sock"))
    if longest > PATH_BYTES:
        raise UsageError(
            f"{instance.directory} is too long a path: that of a Unix socket in it would have {longest} bytes, and may "
            f"have {PATH_BYTES} (sun_path, unix(7)); choose a shorter --runtime-dir or --name"
        )


def _become(settings: RunSettings) -> NoReturn:
    text = settings.to_text()
    try:
        # -P keeps the working directory out of sys.path: root must not import what another user placed there.
        os.execv(sys.executable, [sys.executable, "-P", "-m", MODULE, text])
    except OSError as error:
        _fail(f"cannot execute {sys.executable}: {(error.strerror or str(error)).lower()}", _FAILED)


def _fail(text: str, code: int) -> NoReturn:
    say("\n  ".join(f"multibinder run: {text}".splitlines()), err=True)
    sys.exit(code)


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
