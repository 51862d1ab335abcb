"""``multibinder-haproxy``: the commands. Each imports by itself what it alone needs, which takes most of its time."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import click

from multibinder import SOCKET_VARIABLE, MultibinderError, __version__
from multibinder.launch.errors import LaunchError, NoSuchInstance, NotAnswering, NotRunning, UsageError
from multibinder.launch.instance_files import known_instances
from multibinder_haproxy.as_owner import run_as_owner, status_by_owner, wrapper_path
from multibinder_haproxy.instance import PROGRAM, Instance
from multibinder_haproxy.invocation import Invocation, RunOptions
from multibinder_haproxy.output import (
    print_checked,
    print_content,
    print_error,
    print_finished,
    print_report,
    print_status,
    print_stopped,
    say,
    say_json,
    warn,
)
from multibinder_haproxy.reexec.unchanged_start import RUNTIME_DIR_VARIABLE, default_runtime_directory
from multibinder_haproxy.status import exit_code_of

EXIT_CODES = """
\b
Exit codes: 0 done, 1 failed (the message says why), 2 wrong usage,
3 HAProxy is not running, 4 no such instance, 5 HAProxy runs, but its master does not answer.
"""
_CODES = {UsageError: 2, NotRunning: 3, NoSuchInstance: 4, NotAnswering: 5}

_runtime_dir = click.option(
    "--runtime-dir",
    envvar=RUNTIME_DIR_VARIABLE,
    show_envvar=True,
    metavar="DIR",
    default=default_runtime_directory,
    show_default="/run/multibinder-haproxy for root",
    help="The directory of rendered configurations, sockets and records.",
)


def _complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    directory = ctx.params.get("runtime_dir") or default_runtime_directory()
    return [name for name in known_instances(directory) if name.startswith(incomplete)]


def _require_name(ctx: click.Context, param: click.Parameter, name: str | None) -> str | None:
    if name == "":
        raise click.BadParameter("the name is empty; give the name of an instance, or no argument where it is optional")
    return name


_name = click.argument("name", callback=_require_name, shell_complete=_complete_name)
_timeout = click.option(
    "--timeout",
    type=click.FloatRange(0.1),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="The time limit of each wait: for another command, and for HAProxy.",
)
_vars = click.option(
    "--vars",
    "variables",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="Read variables for the templates from a .toml or .json file; may be given several times.",
)
_take_binds = click.option(
    "--take-binds/--no-take-binds",
    default=None,
    help="Let the binder hold the addresses of plain 'bind' lines, too, as if they were written with bind_tcp(). "
    "Default: if no -f names a template. For an instance that runs, it begins at its next start.",
)
_take_stats = click.option(
    "--take-stats", is_flag=True, help="The same for 'stats socket' lines of the global section."
)
_sandbox = click.option(
    "--sandbox",
    is_flag=True,
    help="Do not let templates run Python code (Jinja2's sandbox). Without it a template is a program: every user "
    "who can change it, or a file that it includes, can do all that this user can. The sandbox limits neither what "
    "HAProxy does with the result nor what 'env' holds.",
)
_socket = click.option(
    "--socket", envvar=SOCKET_VARIABLE, show_envvar=True, metavar="PATH", help="The binder's control socket."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name=PROGRAM)
def multibinder_haproxy() -> None:
    """Run HAProxy on sockets that outlive it: reload, crash and upgrade without refusing a connection.

    \b
    Example:
      multibinder-haproxy run --name web -- /usr/sbin/haproxy -Ws -f /etc/haproxy/web.cfg.j2
      multibinder-haproxy reload web
    """


@multibinder_haproxy.command("run", short_help="Render the templates, get the sockets, and become HAProxy.")
@click.option(
    "--name", required=True, callback=_require_name, help="The instance's name, which the other commands take."
)
@_runtime_dir
@_socket
@_vars
@click.option("--wait", type=click.FloatRange(0), default=10.0, show_default=True, metavar="SECONDS",
              help="The time to wait for a binder that does not answer yet.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Fail instead of starting with the last good configuration.")
@click.option(
    "--keep-listeners",
    is_flag=True,
    help="After a start that fails, leave the ports open: for a supervisor "
    "that starts HAProxy again. Clients wait meanwhile; otherwise they are refused.",
)
@click.option("--state-dir", envvar="MULTIBINDER_HAPROXY_STATE_DIR", show_envvar=True, metavar="DIR",
              help="Keep the last good configuration in DIR/NAME, where it survives a reboot. Without it, it is in the "
              "runtime directory.")  # fmt: skip
@_take_binds
@_take_stats
@click.option(
    "--adopt",
    is_flag=True,
    help="Take the listeners over from the server that has them now, such as a plain HAProxy or nginx, and end it "
    "gracefully when HAProxy is ready. For root.",
)
@_sandbox
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- HAPROXY ARGS...")
def run_command(name: str, runtime_dir: str, adopt: bool, **options: Any) -> None:
    """Render the templates, get the sockets, and become HAProxy.

    Every -f FILE.j2 (also .mb, .erb, and directories) is rendered. Without a template, the binder holds what the bind
    lines of the files name (--take-binds). All other arguments go to HAProxy as they are. No process of ours stays:
    HAProxy's own reload (SIGUSR2, its master CLI) runs the wrapper again.

    If a template is broken, or HAProxy refuses the configuration, the last good one is used, and a message says so. The
    options are remembered: every reload uses them too.

    \b
    Example:
      multibinder-haproxy run --name web -- /usr/sbin/haproxy -Ws -f /etc/haproxy/web.cfg.j2
    """
    from multibinder_haproxy import start

    if adopt and not options["socket"]:
        raise UsageError(f"--adopt needs a binder: name it by --socket or {SOCKET_VARIABLE}")
    start.run(_plan(Instance(runtime_dir, name), run_arguments=sys.argv[1:], **options), adopt=adopt)


@multibinder_haproxy.command(
    "reload", short_help="Load the configuration anew; the old worker finishes its connections.", epilog=EXIT_CODES
)
@click.argument("name", required=False, callback=_require_name, shell_complete=_complete_name)
@click.option("--all", "every", is_flag=True, help="Reload every instance that runs, one after the other.")
@click.option("--keep-going", is_flag=True, help="With --all, go on after a failure.")
@_runtime_dir
@_timeout
def reload_command(name: str | None, every: bool, keep_going: bool, runtime_dir: str, timeout: float) -> None:
    """Load the configuration anew; the old worker finishes its connections.

    The configuration is checked first. If anything is wrong, nothing is touched and the old worker serves as before.
    Reloads that are asked for while one is under way become one.

    \b
    Example:
      multibinder-haproxy reload web
      multibinder-haproxy reload --all
    """
    from multibinder_haproxy.reload import reload
    from multibinder_haproxy.reload_all import reload_all

    if (name is None) != every:
        raise click.UsageError("give the NAME of an instance, or --all")
    if name is None:
        sys.exit(reload_all(runtime_dir, timeout, keep_going))
    instance = Instance(runtime_dir, name)
    _leave_to_its_owner(instance, "reload", "--timeout", str(timeout), name, timeout_s=timeout)
    report = reload(instance, timeout)
    print_report(name, report)
    sys.exit(0 if report.ok else 1)


@multibinder_haproxy.command("check", short_help="Check whether a reload or a start would succeed.", epilog=EXIT_CODES)
@click.argument("name_or_command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="NAME | -- HAPROXY ARGS...")
@_runtime_dir
@_socket
@_vars
@_take_binds
@_take_stats
@_sandbox
def check_command(name_or_command: tuple[str, ...], runtime_dir: str, **options: Any) -> None:
    """Check whether a reload (NAME) or a start (-- ARGS...) would succeed. Nothing is touched.

    A NAME is checked with the options that it was started with.

    \b
    Example:
      multibinder-haproxy check web
      multibinder-haproxy check -- /usr/sbin/haproxy -Ws -f /etc/haproxy/web.cfg.j2
    """
    from multibinder_haproxy.check import check_reload, check_start

    if name_or_command[0] == "":
        raise click.BadParameter("the name is empty")
    if len(name_or_command) == 1:
        if options["sandbox"]:
            raise UsageError("--sandbox goes with '-- HAPROXY ARGS...': a NAME is checked as it was started")
        instance = Instance(runtime_dir, name_or_command[0])
        _leave_to_its_owner(instance, "check", instance.name, timeout_s=60)
        checked = check_reload(instance, instance.read_invocation())
    else:
        invocation = _plan(Instance(runtime_dir, "check"), command=name_or_command, strict=True, wait=0, **options)
        checked = check_start(invocation, os.environ)
    print_checked(checked)


_haproxy = click.option(
    "--haproxy",
    metavar="PROGRAM",
    help="The HAProxy that says which .if blocks of a plain file it reads. Default: 'haproxy' in PATH.",
)


@multibinder_haproxy.command(
    "render", short_help="Print the text of a template, or what becomes of a plain file, without asking a binder."
)
@click.option("--name", default="NAME", callback=_require_name, help="The value of 'name' in the template.")
@_vars
@_sandbox
@_take_stats
@_haproxy
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
def render_command(
    file: str, name: str, variables: tuple[str, ...], sandbox: bool, take_stats: bool, haproxy: str | None
) -> None:
    """Print the text of a template, with fd@{ADDRESS} where a descriptor will stand. The binder is not asked.

    Of a file that is no template, print a diff: what --take-binds makes of its bind lines. What is left to HAProxy, and
    why, is printed on stderr.

    \b
    Example:
      multibinder-haproxy render /etc/haproxy/web.cfg.j2
      multibinder-haproxy render /etc/haproxy/haproxy.cfg
    """
    from multibinder_haproxy.config.template_files import is_template

    if not is_template(file):
        from multibinder_haproxy.plain_file import PlainFile

        plain = PlainFile.read(file, os.environ, stats=take_stats, haproxy=haproxy)
        taken = plain.taken()
        print_content(b"".join(plain.difference(taken)))
        for each in taken.left:
            warn(f"left to HAProxy: {each}")
        if not taken.edits:
            warn(f"{file}: it has no bind that the binder can hold")
        return
    from multibinder_haproxy.config.renderer import Renderer
    from multibinder_haproxy.config.variables import read_variables

    renderer = Renderer(name, read_variables(variables), os.environ, sandbox=sandbox)
    config = renderer.render([(os.path.abspath(file), file)])
    say(config.files[file], nl=False)
    for warning in config.warnings:
        warn(warning)


@multibinder_haproxy.command("convert", short_help="Write the template that does what --take-binds does to a file.")
@click.option("-o", "--output", default="-", metavar="FILE.j2", help="Where to write it. Default: standard output.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@_take_stats
@_haproxy
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
def convert_command(file: str, output: str, force: bool, take_stats: bool, haproxy: str | None) -> None:
    """Write the template of a plain file, with a call of bind_tcp() or its like in the place of each address.

    Nothing else in the file changes. The template is rendered and compared with what --take-binds makes of the file,
    before it is written. A bind for which no call is certain to mean the same stays as it is; a message names it.

    \b
    Example:
      multibinder-haproxy convert /etc/haproxy/haproxy.cfg -o /etc/haproxy/web.cfg.j2
    """
    from multibinder_haproxy import plain_file

    plain_file.refuse_template(file)
    plain = plain_file.PlainFile.read(file, os.environ, stats=take_stats, haproxy=haproxy)
    content, left = plain.template()
    if output == "-":
        print_content(content)
    else:
        plain_file.write(output, content, plain, force=force)
    for each in left:
        warn(f"stays as it is: {each}")


@multibinder_haproxy.command("status", short_help="Show the state of one instance, or of all.", epilog=EXIT_CODES)
@click.argument("name", required=False, callback=_require_name, shell_complete=_complete_name)
@_runtime_dir
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs (docs/instance-summary.md).")
def status_command(name: str | None, runtime_dir: str, as_json: bool) -> None:
    """Show the state of one instance, or of all. The exit code is 1 if one runs, but has a PROBLEM.

    'changed' names the files that the configuration came from and that changed on disk since it was loaded. That
    alone is no failure.

    \b
    Example:
      multibinder-haproxy status web --json | jq .state
    """
    statuses, failed = [], False
    if name is not None:
        statuses.append(status_by_owner(Instance(runtime_dir, name)))
    for each in known_instances(runtime_dir) if name is None else ():
        try:
            statuses.append(status_by_owner(Instance(runtime_dir, each)))
        except LaunchError as error:
            print_error(f"{each}: {error}")
            failed = True
    if as_json:
        say_json(statuses[0] if name is not None else statuses)
    elif not statuses and not failed:
        say(f"No instances in {runtime_dir}.", err=True)
    for status in () if as_json else statuses:
        print_status(status)
    sys.exit(max([int(failed), *(exit_code_of(status) for status in statuses)]))


@multibinder_haproxy.command("stop", short_help="Stop HAProxy gracefully, then close its ports.", epilog=EXIT_CODES)
@_name
@_runtime_dir
@_timeout
@click.option("--keep-listeners", is_flag=True, help="Leave the ports open; clients wait for the next start.")
def stop_command(name: str, runtime_dir: str, timeout: float, keep_listeners: bool) -> None:
    """Stop gracefully: HAProxy accepts no new connections and finishes the present ones. Then the ports close.

    A load that is under way is ended. If HAProxy does not run (after a crash), the ports close all the same.

    \b
    Example:
      multibinder-haproxy stop web --timeout 300
    """
    from multibinder_haproxy import stop

    instance = Instance(runtime_dir, name)
    keep = ["--keep-listeners"] if keep_listeners else []
    _leave_to_its_owner(instance, "stop", "--timeout", str(timeout), *keep, name, timeout_s=timeout)
    stopped = stop.stop(instance, timeout, keep_listeners)
    print_stopped(name, stopped)
    sys.exit(0 if stopped.was_running else 3)


@multibinder_haproxy.command("leave", short_help="Go back to a plain HAProxy, which gets the listeners.")
@click.option("--name", required=True, callback=_require_name, help="The instance's name.")
@_runtime_dir
@click.option(
    "--no-end",
    is_flag=True,
    help="Leave the instance and its claims as they are, for a caller that ends both ('multibinder-haproxy stop "
    "--keep-listeners', 'multibinder release --leave-open').",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- HAPROXY ARGS...")
def leave_command(name: str, runtime_dir: str, no_end: bool, command: tuple[str, ...]) -> None:
    """Become a plain HAProxy, which gets the listeners of an instance by its own -x.

    When a worker of it accepts, the binder lets go of the listeners without closing them, and the instance finishes its
    connections and ends. No client is refused. If the new HAProxy does not start, the instance serves as before. For
    root and the binder's own user.

    \b
    Example:
      multibinder-haproxy leave --name web -- /usr/sbin/haproxy -Ws -f /etc/haproxy/haproxy.cfg
    """
    from multibinder_haproxy.leave import leave

    leave(Instance(runtime_dir, name), command, end=not no_end)


def main() -> NoReturn:
    """Run the command line. An error of ours is one message on stderr and an exit code."""
    try:
        multibinder_haproxy(prog_name=PROGRAM)
    except (LaunchError, MultibinderError) as error:
        print_error(str(error))
        sys.exit(next((code for kind, code in _CODES.items() if isinstance(error, kind)), 1))
    except OSError as error:
        print_error(f"{error.filename or ''}: {error.strerror or error}")
        sys.exit(1)
    sys.exit(0)


def _plan(instance: Instance, **options: Any) -> Invocation:
    return Invocation.plan(instance.name, instance.directory, RunOptions(command_path=wrapper_path(), **options))


def _leave_to_its_owner(instance: Instance, *arguments: str, timeout_s: float = 0) -> None:
    """If the instance is another user's, run the command as that user, print its output, and exit as it did."""
    finished = run_as_owner(instance, *arguments, timeout_s=timeout_s)
    if finished is not None:
        print_finished(finished)
        sys.exit(finished.returncode)
