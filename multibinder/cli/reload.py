"""``multibinder reload``: start new copies of an instance beside the old ones, of either kind."""

from __future__ import annotations

import subprocess

import click

from multibinder.cli.named_instance import (
    EXIT_CODES,
    HAPROXY,
    RUN,
    become_wrapper,
    complete_name,
    directory_options,
    exits,
    kind_and_name,
    print_error,
    print_finished,
    run_as_owner,
    wrapper_path,
)
from multibinder.cli.say import say
from multibinder.launch.errors import LaunchError, UsageError
from multibinder.launch.instance_files import known_instances
from multibinder.launch.owner import other_owner
from multibinder.launch.run.ask import ask, is_running
from multibinder.launch.run.files import RunInstance
from multibinder.launch.run.report import Command, ReloadReport, Request


@click.command("reload", short_help="Reload an instance: new copies beside the old ones.", epilog=EXIT_CODES)
@click.argument("name", required=False, shell_complete=complete_name, metavar="[NAME]")
@click.option("--all", "every", is_flag=True, help="Reload every instance that runs, of both kinds, one by one.")
@click.option("--keep-going", is_flag=True, help="With --all, go on after a failure.")
@click.option("--continue", "go_on", is_flag=True, help="Replace the other copies too, after --canary.")
@click.option("--abort", is_flag=True, help="End the canaries; the old copies serve on. Also ends any other reload.")
@click.option("--timeout", type=click.FloatRange(0.1), default=600.0, show_default=True, metavar="SECONDS",
              help="The time to wait. The reload goes on after it.")  # fmt: skip
@directory_options
def reload_command(
    name: str | None,
    every: bool,
    keep_going: bool,
    go_on: bool,
    abort: bool,
    timeout: float,
    runtime_dir: str,
    haproxy_dir: str,
) -> None:
    """Reload an instance of 'multibinder run' or of 'multibinder-haproxy': new copies beside the old ones.

    If a new copy fails, it is ended, the old ones serve on, and the message says why. Reloads that are asked for while
    one is under way become one. Where both kinds have an instance of this name, write run:NAME or haproxy:NAME.

    \b
    Example:
      multibinder reload web
      multibinder reload --all
      multibinder reload --continue web
    """
    if (name is None) != every:
        raise click.UsageError("give the NAME of an instance, or --all")
    if go_on + abort + every > 1:
        raise click.UsageError("--continue, --abort and --all exclude each other")
    if name is None:
        exits(lambda: _reload_all(runtime_dir, haproxy_dir, timeout, keep_going))
    command: Command = "continue" if go_on else "abort" if abort else "reload"
    exits(lambda: _reload_named(name, command, timeout, runtime_dir, haproxy_dir))


def _reload_named(text: str, command: Command, timeout_s: float, runtime_dir: str, haproxy_dir: str) -> int:
    kind, name = kind_and_name(text, runtime_dir, haproxy_dir)
    if kind == HAPROXY:
        if command != "reload":
            raise UsageError(f"{name} is a HAProxy: it has no canaries to {command}")
        become_wrapper(haproxy_dir, "reload", "--timeout", str(timeout_s), name)
    return _reload(RunInstance(runtime_dir, name), command, timeout_s)


def _reload(instance: RunInstance, command: Command, timeout_s: float) -> int:
    option = [] if command == "reload" else [f"--{command}"]
    arguments = ["reload", "--timeout", str(timeout_s), *option, f"{RUN}:{instance.name}"]
    finished = run_as_owner(instance, *arguments, timeout_s=timeout_s)
    if finished is not None:
        print_finished(finished)
        return finished.returncode
    answer = ask(instance, Request(command), timeout_s, lambda text: say(f"{instance.name}: {text}", err=True))
    if answer.report is None:
        say(f"{instance.name}: {'the canaries are ended' if command == 'abort' else 'done'}")
        return 0
    print_report(instance.name, answer.report)
    # That the canaries are ended is what was asked for.
    return 0 if answer.report.ok or command == "abort" else 1


def print_report(name: str, report: ReloadReport) -> None:
    """Print how a reload ended."""
    for warning in report.warnings:
        say("\n  ".join(f"warning: {warning}".splitlines()), err=True)
    if not report.ok:
        serving = f" ({_list(report.old)})" if report.old else ""
        print_error(f"{name}: the reload failed; the old copies{serving} serve on: {report.message}")
        for line in report.output:
            say(f"  | {line}", err=True)
        return
    pids = f"pid {_list(report.old) or 'none'} -> {_list(report.new) or 'none'}"
    if report.is_canary:
        say(f"{name}: canary, generation {report.generation}, {pids}")
        say(f"  'multibinder reload --continue {name}' replaces the others, --abort ends the new ones")
    else:
        say(f"{name}: reloaded in {report.took_s:.2f} s, generation {report.generation}, {pids}")
    for what, addresses in (("added", report.added), ("kept", report.kept), ("dropped", report.dropped)):
        if addresses:
            say(f"  {what:8}{', '.join(addresses)}")
    if report.message:
        say(f"  {report.message}")


def _reload_all(runtime_dir: str, haproxy_dir: str, timeout_s: float, keep_going: bool) -> int:
    """Reload the instances of 'run', then those of HAProxy. After a failure the rest is not touched."""
    failed: list[str] = []
    running = []
    for name in known_instances(runtime_dir):
        instance = RunInstance(runtime_dir, name)
        try:
            # Who may not look whether another user's instance runs asks it.
            if other_owner(instance.directory) is not None or is_running(instance):
                running.append(instance)
        except OSError as error:
            print_error(f"{name}: {error.filename}: {(error.strerror or str(error)).lower()}")
            failed.append(name)
    for number, instance in enumerate(running, 1):
        if failed and not keep_going:
            rest = ", ".join(each.name for each in running[number - 1 :])
            say(f"failed: {', '.join(failed)}; not tried: {rest}, and HAProxy's (--keep-going)", err=True)
            return 1
        try:
            code = _reload(instance, "reload", timeout_s)
        except (LaunchError, OSError) as error:
            print_error(f"{instance.name}: {error}")
            code = 1
        # Another user's instance that does not run is none to reload.
        if code not in (0, 3):
            failed.append(instance.name)
    if failed and not keep_going:
        say(f"failed: {', '.join(failed)}; HAProxy's are not tried (--keep-going)", err=True)
        return 1
    if known_instances(haproxy_dir):
        option = ["--keep-going"] if keep_going else []
        words = [wrapper_path(), "reload", "--all", *option, "--timeout", str(timeout_s), "--runtime-dir", haproxy_dir]
        if subprocess.run(words, check=False).returncode:  # noqa: S603
            failed.append("HAProxy's")
    elif not running and not failed:
        say(f"No instance runs in {runtime_dir} or {haproxy_dir}.", err=True)
    return int(bool(failed))


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
