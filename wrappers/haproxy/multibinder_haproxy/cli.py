"""``multibinder-haproxy``: the commands. The only place of the wrapper that prints results and exits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING, NoReturn

import click

from multibinder import SOCKET_VARIABLE, MultibinderError, __version__
from multibinder_haproxy.errors import NoSuchInstance, NotRunning, UsageError, WrapperError
from multibinder_haproxy.instance import Instance, default_runtime_directory, known_instances
from multibinder_haproxy.ownership import other_owner

if TYPE_CHECKING:
    from multibinder_haproxy.instance import ReloadReport
    from multibinder_haproxy.invocation import Invocation
    from multibinder_haproxy.status import Status

EXIT_CODES = """
\b
Exit codes: 0 done, 1 failed (the message says why), 2 wrong usage,
3 HAProxy is not running, 4 no such instance.
"""
_CODES = {UsageError: 2, NotRunning: 3, NoSuchInstance: 4}

_runtime_dir = click.option(
    "--runtime-dir",
    envvar="MULTIBINDER_HAPROXY_RUNTIME_DIR",
    show_envvar=True,
    metavar="DIR",
    default=default_runtime_directory,
    show_default="/run/multibinder-haproxy for root",
    help="Where rendered configurations, sockets and records are.",
)


def _complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    directory = ctx.params.get("runtime_dir") or default_runtime_directory()
    return [name for name in known_instances(directory) if name.startswith(incomplete)]


_name = click.argument("name", shell_complete=_complete_name)
_timeout = click.option(
    "--timeout", type=click.FloatRange(0.1), default=60.0, show_default=True, metavar="SECONDS", help="For each wait."
)
_vars = click.option(
    "--vars",
    "variables",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="A .toml or .json file with variables for the templates; may be given several times.",
)
_sandbox = click.option(
    "--sandbox",
    is_flag=True,
    help="Templates cannot run Python of their own (Jinja2's sandbox). Without it a template is a program: whoever can "
    "change it, or a file that it includes, can do all that this user can. What HAProxy does with the result, and what "
    "'env' holds, the sandbox does not limit.",
)
_socket = click.option(
    "--socket", envvar=SOCKET_VARIABLE, show_envvar=True, metavar="PATH", help="The binder's control socket."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="multibinder-haproxy")
def multibinder_haproxy() -> None:
    """Run HAProxy on sockets that outlive it: reload, crash and upgrade without refusing a connection.

    \b
    Example:
      multibinder-haproxy run --name web -- /usr/sbin/haproxy -Ws -f /etc/haproxy/web.cfg.j2
      multibinder-haproxy reload web
    """


@multibinder_haproxy.command()
@click.option("--name", required=True, help="The instance's name, for the other commands.")
@_runtime_dir
@_socket
@_vars
@click.option("--wait", type=click.FloatRange(0), default=10.0, show_default=True, metavar="SECONDS",
              help="For a binder that is not there yet.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Never start with the last good configuration: fail instead.")
@_sandbox
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- HAPROXY ARGS...")
def run(
    name: str,
    runtime_dir: str,
    socket: str | None,
    variables: tuple[str, ...],
    wait: float,
    strict: bool,
    sandbox: bool,
    command: tuple[str, ...],
) -> None:
    """Render the templates, get the sockets, and become HAProxy.

    Every -f FILE.j2 (also .mb, .erb, and directories) is rendered; all other arguments go to HAProxy as they are. No
    process of ours stays: HAProxy's own reload (SIGUSR2, its master CLI) runs the wrapper again.

    If a template is broken, or HAProxy refuses the configuration, the last good one is used, and said so. The options
    are remembered: every reload uses them too.

    \b
    Example:
      multibinder-haproxy run --name web -- /usr/sbin/haproxy -Ws -f /etc/haproxy/web.cfg.j2
    """
    from multibinder_haproxy.start import run as start

    start(_plan(Instance(runtime_dir, name), command, socket, variables, strict, wait, sandbox))


@multibinder_haproxy.command("reload", epilog=EXIT_CODES)
@click.argument("name", required=False, shell_complete=_complete_name)
@click.option("--all", "every", is_flag=True, help="Every instance that runs, one after the other.")
@click.option("--keep-going", is_flag=True, help="With --all: do not stop at the first failure.")
@_runtime_dir
@_timeout
def reload_command(name: str | None, every: bool, keep_going: bool, runtime_dir: str, timeout: float) -> None:
    """Load the configuration afresh; the old worker finishes its connections.

    Checks first. If anything is wrong, nothing is touched and the old worker serves as before. Reloads that are asked
    for while one is under way become one.

    \b
    Example:
      multibinder-haproxy reload web
      multibinder-haproxy reload --all
    """
    from multibinder_haproxy.reload import reload

    if (name is None) != every:
        raise click.UsageError("give the NAME of an instance, or --all")
    if name is not None:
        _leave_to_its_owner(runtime_dir, name, "reload", "--timeout", str(timeout), name)
        report = reload(Instance(runtime_dir, name), timeout)
        _print_report(name, report)
        sys.exit(0 if report.ok else 1)
    sys.exit(_reload_all(runtime_dir, timeout, keep_going))


@multibinder_haproxy.command(epilog=EXIT_CODES)
@click.argument("name_or_command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="NAME | -- HAPROXY ARGS...")
@_runtime_dir
@_socket
@_vars
@_sandbox
def check(
    name_or_command: tuple[str, ...], runtime_dir: str, socket: str | None, variables: tuple[str, ...], sandbox: bool
) -> None:
    """Say whether a reload (NAME) or a start (-- ARGS...) would succeed. Touches nothing.

    A NAME is checked with the options that it was started with.

    \b
    Example:
      multibinder-haproxy check web
      multibinder-haproxy check -- /usr/sbin/haproxy -Ws -f /etc/haproxy/web.cfg.j2
    """
    from multibinder_haproxy import reload, sockets
    from multibinder_haproxy.check import check_with_haproxy
    from multibinder_haproxy.errors import BinderAway

    if len(name_or_command) == 1:
        if sandbox:
            raise UsageError("--sandbox goes with '-- HAPROXY ARGS...': a NAME is checked as it was started")
        _leave_to_its_owner(runtime_dir, name_or_command[0], "check", name_or_command[0])
        config = reload.check(Instance(runtime_dir, name_or_command[0]))
    else:
        invocation = _plan(Instance(runtime_dir, "check"), name_or_command, socket, variables, True, 0, sandbox)
        config = invocation.render(os.environ)
        check_with_haproxy(invocation, config, os.environ)
        if invocation.binder:
            try:
                sockets.check_binds(invocation.binder, config.slots, invocation.owner)
            except BinderAway as error:
                _warn(f"whether the binder would grant the binds is unknown: {error}")
        else:
            _warn(f"{SOCKET_VARIABLE} is not set: HAProxy would bind by itself")
    for warning in config.warnings:
        _warn(warning)
    binds = ", ".join(slot.key for slot in config.slots) or "no bind_tcp()"
    click.echo(f"ok: {len(config.files)} file(s), {binds}")


@multibinder_haproxy.command()
@click.option("--name", default="NAME", help="What 'name' is in the template.")
@_vars
@_sandbox
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
def render(file: str, name: str, variables: tuple[str, ...], sandbox: bool) -> None:
    """Print a template's text, with fd@{ADDRESS} where a descriptor will stand. Asks no binder.

    \b
    Example:
      multibinder-haproxy render /etc/haproxy/web.cfg.j2
    """
    from multibinder_haproxy.config.jinja import Renderer, read_variables

    renderer = Renderer(name, read_variables(variables), os.environ, sandbox=sandbox)
    config = renderer.render([(os.path.abspath(file), file)])
    click.echo(config.files[file], nl=False)
    for warning in config.warnings:
        _warn(warning)


@multibinder_haproxy.command(epilog=EXIT_CODES)
@click.argument("name", required=False, shell_complete=_complete_name)
@_runtime_dir
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(name: str | None, runtime_dir: str, as_json: bool) -> None:
    """Show one instance, or all. Exit code 1 if one runs, but not with what was asked for (see its PROBLEM).

    'changed' names the files that the configuration came from and that changed on disk since it was loaded. That
    alone is no failure.

    \b
    Example:
      multibinder-haproxy status web --json | jq .state
    """
    import msgspec

    names = [name] if name else known_instances(runtime_dir)
    statuses = [_status_of(runtime_dir, each) for each in names]
    if as_json:
        encoded = msgspec.json.encode(statuses[0] if name else statuses)
        click.echo(msgspec.json.format(encoded))
    elif not statuses:
        click.echo(f"No instances in {runtime_dir}.", err=True)
    for each in () if as_json else statuses:
        _print_status(each)
    codes = {"running": 0, "degraded": 1, "stopped": 3}
    sys.exit(max((codes[each.state] for each in statuses), default=0))


@multibinder_haproxy.command(epilog=EXIT_CODES)
@_name
@_runtime_dir
@_timeout
@click.option("--keep-listeners", is_flag=True, help="Leave the ports open: clients wait for the next start.")
def stop(name: str, runtime_dir: str, timeout: float, keep_listeners: bool) -> None:
    """Stop gracefully: no new connections, the present ones are finished; then the ports close.

    \b
    Example:
      multibinder-haproxy stop web --timeout 300
    """
    from multibinder_haproxy.reload import stop as stop_instance

    keep = ["--keep-listeners"] if keep_listeners else []
    _leave_to_its_owner(runtime_dir, name, "stop", "--timeout", str(timeout), *keep, name)
    closed = stop_instance(Instance(runtime_dir, name), timeout, keep_listeners)
    click.echo(f"{name}: stopped{', closed ' + ', '.join(closed) if closed else ''}")


@multibinder_haproxy.command(hidden=True)
@_name
@_runtime_dir
@_timeout
def settle(name: str, runtime_dir: str, timeout: float) -> None:
    """After a reload by signal: release what is no longer bound, once the new worker is there."""
    from multibinder_haproxy.reload import settle as settle_instance

    settle_instance(Instance(runtime_dir, name), timeout)


def main() -> NoReturn:
    """The console script. An error of ours is one message on stderr and an exit code."""
    try:
        multibinder_haproxy(prog_name="multibinder-haproxy")
    except (WrapperError, MultibinderError) as error:
        click.echo(f"multibinder-haproxy: {error}", err=True)
        sys.exit(next((code for kind, code in _CODES.items() if isinstance(error, kind)), 1))
    except OSError as error:
        click.echo(f"multibinder-haproxy: {error.filename or ''}: {error.strerror or error}", err=True)
        sys.exit(1)
    sys.exit(0)


def _plan(
    instance: Instance,
    command: tuple[str, ...],
    socket: str | None,
    variables: tuple[str, ...],
    strict: bool,
    wait: float,
    sandbox: bool,
) -> Invocation:
    from multibinder_haproxy.invocation import Invocation

    return Invocation.plan(
        instance.name,
        instance.directory,
        command,
        wrapper=_wrapper(),
        variables=variables,
        binder=os.path.abspath(socket) if socket else None,
        strict=strict,
        wait_s=wait,
        sandbox=sandbox,
    )


def _wrapper() -> str:
    """The absolute path by which HAProxy's master can execute us again."""
    for candidate in (sys.argv[0], os.path.join(os.path.dirname(sys.executable), "multibinder-haproxy")):
        path = shutil.which(candidate) if "/" not in candidate else os.path.abspath(candidate)
        if path and os.path.basename(path) == "multibinder-haproxy" and os.access(path, os.X_OK):
            return path
    raise UsageError("cannot find the installed 'multibinder-haproxy' command, which HAProxy must execute to reload")


def _reload_all(runtime_dir: str, timeout: float, keep_going: bool) -> int:
    """One after the other, with progress; 1 if one failed, and those after it are not touched unless ``keep_going``."""
    from multibinder_haproxy.reload import reload

    running = [name for name in known_instances(runtime_dir) if _status_of(runtime_dir, name).state != "stopped"]
    failed: list[str] = []
    for number, name in enumerate(running, 1):
        click.echo(f"[{number}/{len(running)}] ", nl=False)
        done = _as_its_owner(runtime_dir, name, "reload", "--timeout", str(timeout), name)
        if done is not None:
            _echo(done)
            failed += [name] if done.returncode else []
            if failed and not keep_going:
                break
            continue
        try:
            report = reload(Instance(runtime_dir, name), timeout)
        except (WrapperError, OSError) as error:
            click.echo(f"{name}: failed")
            click.echo(f"multibinder-haproxy: {name}: {error}", err=True)
            failed.append(name)
        else:
            click.echo("" if report.ok else f"{name}: failed\n", nl=False)
            _print_report(name, report)
            failed += [] if report.ok else [name]
        if failed and not keep_going:
            break
    if failed:
        left = ", ".join(running[number:])
        click.echo(f"failed: {', '.join(failed)}{f'; not tried: {left} (--keep-going)' if left else ''}", err=True)
    elif not running:
        click.echo(f"No instance runs in {runtime_dir}.", err=True)
    return 1 if failed else 0


def _status_of(runtime_dir: str, name: str) -> Status:
    import msgspec

    from multibinder_haproxy.status import Status, status_of

    done = _as_its_owner(runtime_dir, name, "status", "--json", name)
    if done is None:
        return status_of(Instance(runtime_dir, name))
    try:
        return msgspec.json.decode(done.stdout, type=Status)
    except msgspec.DecodeError:
        raise WrapperError(_printable(done.stderr).removeprefix("multibinder-haproxy: ").strip()) from None


def _as_its_owner(runtime_dir: str, name: str, *arguments: str) -> subprocess.CompletedProcess[str] | None:
    """For root, and an instance of another user: run a command of ours as that user. None for all other instances.

    The instance's records say which program to execute and which templates, which are programs, to run: as root that
    would make its user root. The session and the environment are new: no terminal to type into, nothing of root's.
    """
    owner = other_owner(Instance(runtime_dir, name).directory)
    if owner is None:
        return None
    wrapper = _wrapper()
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "TMPDIR") if key in os.environ}
    try:
        return subprocess.run(  # noqa: S603
            [wrapper, *arguments],
            user=owner.uid,
            group=owner.gid,
            extra_groups=owner.groups,
            env={**kept, "MULTIBINDER_HAPROXY_RUNTIME_DIR": os.path.abspath(runtime_dir)},
            cwd="/",
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise WrapperError(
            f"{name} belongs to {owner}, and {wrapper} cannot be run as that user: {error.strerror}"
        ) from error


def _leave_to_its_owner(runtime_dir: str, name: str, *arguments: str) -> None:
    """Exits, if the instance is another user's, with what the command said when it was run as that user."""
    done = _as_its_owner(runtime_dir, name, *arguments)
    if done is not None:
        _echo(done)
        sys.exit(done.returncode)


def _echo(done: subprocess.CompletedProcess[str]) -> None:
    click.echo(_printable(done.stdout), nl=False)
    click.echo(_printable(done.stderr), nl=False, err=True)


def _printable(text: str) -> str:
    """Another user's words, without what root's terminal would obey."""
    return "".join(each if each.isprintable() or each == "\n" else "?" for each in text)


def _warn(text: str) -> None:
    click.echo(f"warning: {text}", err=True)


def _print_report(name: str, report: ReloadReport) -> None:
    for warning in report.warnings:
        _warn(warning)
    if report.ok:
        workers = f"worker {_list(report.old_workers)} -> {_list(report.new_workers)}"
        click.echo(f"{name}: reloaded in {report.took_s:.2f} s, {workers}")
        for what, keys in (("added", report.added), ("kept", report.kept), ("dropped", report.dropped)):
            if keys:
                _print_row(what, ", ".join(keys), width=8)
        for address in report.kept_by_others:
            click.echo(f"  {address} stays open: another owner holds it")
        if report.message:
            _warn(report.message)
    else:
        click.echo(f"multibinder-haproxy: {name}: reload failed, the old worker serves as before:", err=True)
        click.echo(report.message, err=True)


def _print_status(status: Status) -> None:
    if status.state == "stopped":
        click.echo(f"{status.name}: stopped")
        return
    version = f"HAProxy {status.version}, " if status.version else ""
    click.echo(f"{status.name}: {status.state}, {version}master {status.master}")
    reloads = f"{status.reloads_total}; last success {_ago(status.last_success)}"
    if status.last_failure:
        reloads += f"; {status.failures_total} failed, last {_ago(status.last_failure)} ({status.last_failure_phase})"
    since = ", changed since" if status.config_changed else ""
    _print_row("workers", _list(status.workers) or "unknown")
    _print_row("draining", _list(status.old_workers) or "none")
    _print_row("reloads", reloads)
    _print_row("config", f"generation {status.generation}, loaded {_ago(status.loaded_at)}{since}")
    if status.changed != []:
        _print_row("changed", "cannot be told" if status.changed is None else ", ".join(status.changed))
    _print_row("binds", ", ".join(status.binds) or "none")
    for problem in status.problems:
        first, *rest = problem.splitlines()
        click.echo("\n".join([f"  PROBLEM  {first}", *(f"           {line}" for line in rest)]))


def _print_row(label: str, text: str, width: int = 9) -> None:
    """In lines of 80 columns, wherever it goes; never in the middle of an address or a path."""
    click.echo(
        textwrap.fill(
            text,
            80,
            initial_indent=f"  {label:{width}}",
            subsequent_indent=" " * (2 + width),
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def _ago(at: float | None) -> str:
    if at is None:
        return "unknown"
    seconds = max(0.0, time.time() - at)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
