"""``multibinder stop``: end an instance gracefully, of either kind, and close its ports."""

from __future__ import annotations

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
    print_finished,
    run_as_owner,
)
from multibinder.cli.say import say
from multibinder.launch.errors import NotAnswering, NotRunning
from multibinder.launch.run.ask import ask, wait_for_end
from multibinder.launch.run.files import RunInstance
from multibinder.launch.run.leftovers import stop_leftovers
from multibinder.launch.run.report import Request

_NOT_RUNNING = 3
#: The process of a stopped instance has little left to do.
_END_S = 10.0


@click.command("stop", short_help="Stop an instance gracefully, then close its ports.", epilog=EXIT_CODES)
@click.argument("name", shell_complete=complete_name)
@click.option("--keep-listeners", is_flag=True, help="Leave the ports open; clients wait for the next start.")
@click.option("--timeout", type=click.FloatRange(0.1), default=600.0, show_default=True, metavar="SECONDS",
              help="The time to wait. The stop goes on after it.")  # fmt: skip
@directory_options
def stop_command(name: str, keep_listeners: bool, timeout: float, runtime_dir: str, haproxy_dir: str) -> None:
    """Stop an instance of 'multibinder run' or of 'multibinder-haproxy' gracefully, then close its ports.

    The copies accept no new connections and finish the present ones. If it does not run (after a crash, or a kill of
    'multibinder run'), copies that are left are ended, and the ports close all the same; the exit code is 3 then.

    \b
    Example:
      multibinder stop web --keep-listeners
    """
    exits(lambda: _stop(name, keep_listeners, timeout, runtime_dir, haproxy_dir))


def _stop(text: str, keep_listeners: bool, timeout_s: float, runtime_dir: str, haproxy_dir: str) -> int:
    kind, name = kind_and_name(text, runtime_dir, haproxy_dir)
    arguments = ["stop", "--timeout", str(timeout_s), *(["--keep-listeners"] if keep_listeners else [])]
    if kind == HAPROXY:
        become_wrapper(haproxy_dir, *arguments, name)
    instance = RunInstance(runtime_dir, name)
    finished = run_as_owner(instance, *arguments, f"{RUN}:{name}", timeout_s=2 * timeout_s)
    if finished is not None:
        print_finished(finished)
        return finished.returncode
    request = Request("stop", keep_listeners=keep_listeners)
    try:
        answer = ask(instance, request, timeout_s, lambda text: say(f"{name}: {text}", err=True))
    except NotRunning:
        closed, ended = stop_leftovers(instance, timeout_s, keep_listeners)
        left = f"; its copies {', '.join(map(str, ended))} were left, and are ended" if ended else ""
        say(f"{name}: was not running{left}{_closed(closed)}")
        return _NOT_RUNNING
    if not wait_for_end(instance, _END_S):
        raise NotAnswering(f"{name} is stopped, but the process 'multibinder run' has not ended after {_END_S:g} s")
    say(f"{name}: stopped{_closed(answer.closed)}")
    return 0


def _closed(addresses: list[str]) -> str:
    return f"; closed {', '.join(addresses)}" if addresses else ""
