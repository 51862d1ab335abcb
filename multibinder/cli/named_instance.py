"""The instances of both kinds that ``reload``, ``stop`` and ``instances`` take by their names.

A HAProxy instance is left to ``multibinder-haproxy``, which is installed beside this command.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import click

from multibinder.cli.say import say
from multibinder.launch.errors import (
    LaunchError,
    NoSuchInstance,
    NotAnswering,
    NotRunning,
    UsageError,
)
from multibinder.launch.instance_files import check_name, known_instances
from multibinder.launch.owner import other_owner
from multibinder.launch.run.files import RUNTIME_DIR_VARIABLE, RunInstance, default_runtime_directory
from multibinder.launch.run_as import run_as

_F = TypeVar("_F", bound=Callable[..., object])

EXIT_CODES = """
\b
Exit codes: 0 done, 1 failed (the message says why), 2 wrong usage,
3 it is not running, 4 no such instance, 5 it runs, but does not answer.
"""
_CODES = {UsageError: 2, NotRunning: 3, NoSuchInstance: 4, NotAnswering: 5}
HAPROXY, RUN = "haproxy", "run"
WRAPPER = "multibinder-haproxy"
HAPROXY_DIR_VARIABLE = "MULTIBINDER_HAPROXY_RUNTIME_DIR"
#: Another user can stop a command that root runs as that user.
_OWNER_S = 30.0


def default_haproxy_directory() -> str:
    """Return the runtime directory of ``multibinder-haproxy`` for this user."""
    if found := os.environ.get(HAPROXY_DIR_VARIABLE):
        return found
    return os.path.join(os.path.dirname(default_runtime_directory()), WRAPPER)


def directory_options(command: _F) -> _F:
    """Add the options of the two runtime directories."""
    command = click.option(
        "--haproxy-dir", default=default_haproxy_directory, metavar="DIR",
        show_default="/run/multibinder-haproxy for root", help="The runtime directory of the HAProxy instances.",
    )(command)  # fmt: skip
    return click.option(
        "--runtime-dir", envvar=RUNTIME_DIR_VARIABLE, show_envvar=True, default=default_runtime_directory,
        metavar="DIR", show_default="/run/multibinder-run for root", help="The directory of the instances of 'run'.",
    )(command)  # fmt: skip


def complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of instances for the shell. A name of both kinds has its kind before it."""
    ours = known_instances(ctx.params.get("runtime_dir") or default_runtime_directory())
    theirs = known_instances(ctx.params.get("haproxy_dir") or default_haproxy_directory())
    both = {*ours} & {*theirs}
    names = [name for name in (*ours, *theirs) if name not in both]
    names += [f"{kind}:{name}" for name in both for kind in (HAPROXY, RUN)]
    return sorted(name for name in names if name.startswith(incomplete))


def kind_and_name(text: str, runtime_dir: str, haproxy_dir: str) -> tuple[str, str]:
    """Return the kind and the name of the instance that a text names: ``NAME``, ``run:NAME`` or ``haproxy:NAME``.

    Raises UsageError if instances of both kinds have this name, NoSuchInstance if none has.
    """
    kind, colon, name = text.rpartition(":")
    if colon and kind not in (HAPROXY, RUN):
        raise UsageError(f"{kind!r} is no kind of instance: write run:{name} or haproxy:{name}")
    check_name(name)
    if colon:
        return kind, name
    ours = os.path.lexists(os.path.join(runtime_dir, name))
    theirs = os.path.lexists(os.path.join(haproxy_dir, name))
    if ours and theirs:
        raise UsageError(
            f"there are two instances {name!r}, one of 'multibinder run' and one of HAProxy: write run:{name} or "
            f"haproxy:{name}"
        )
    if not ours and not theirs:
        known = ", ".join([*known_instances(runtime_dir), *known_instances(haproxy_dir)]) or "none"
        raise NoSuchInstance(
            f"there is no instance {name!r} in {runtime_dir} or {haproxy_dir} (known: {known}); 'multibinder run "
            f"--name {name} -b ADDRESS -- COMMAND' starts one"
        )
    return (RUN if ours else HAPROXY), name


def become_wrapper(haproxy_dir: str, *arguments: str) -> NoReturn:
    """Become ``multibinder-haproxy`` with these arguments. Raises LaunchError."""
    path = wrapper_path()
    os.environ[HAPROXY_DIR_VARIABLE] = os.path.abspath(haproxy_dir)
    try:
        os.execv(path, [path, *arguments])
    except OSError as error:
        raise LaunchError(f"cannot execute {path}: {(error.strerror or str(error)).lower()}") from error


def wrapper_path() -> str:
    """Return the path of ``multibinder-haproxy``, which is installed with this command. Raises LaunchError."""
    return _beside(WRAPPER)


def run_as_owner(instance: RunInstance, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str] | None:
    """Run a command of ours as the owner of the instance if we are root and that is another user; else return None.

    The instance's records name what is executed, and its socket is whatever its owner put there.
    """
    owner = other_owner(instance.directory)
    if owner is None:
        return None
    path = _beside("multibinder")
    limit_s = _OWNER_S + timeout_s
    try:
        variables = {RUNTIME_DIR_VARIABLE: instance.runtime_directory}
        return run_as(owner, [path, *arguments], variables, limit_s)
    except TimeoutError:
        raise LaunchError(
            f"{instance.name} belongs to {owner}, and its '{arguments[0]}' did not end within {limit_s:g} s; a file or "
            "process of that user hangs"
        ) from None
    except OSError as error:
        raise LaunchError(
            f"{instance.name} belongs to {owner}, and {path} cannot be run as that user: {error.strerror}"
        ) from error


def print_finished(finished: subprocess.CompletedProcess[str]) -> None:
    """Print the output of a command that was run as another user."""
    say(finished.stdout, nl=False)
    say(finished.stderr, nl=False, err=True)


def exits(action: Callable[[], Any]) -> NoReturn:
    """Exit with the code that ``action`` returns, or print its error and exit with that one's."""
    try:
        code = action()
    except LaunchError as error:
        print_error(str(error))
        code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), 1)
    except OSError as error:
        print_error(f"{error.filename or ''}: {(error.strerror or str(error)).lower()}")
        code = 1
    sys.exit(code)


def print_error(text: str) -> None:
    """Print an error. Its further lines are indented: another user's words must not look like a message of ours."""
    say("\n  ".join(f"multibinder: {text}".splitlines()), err=True)


def _beside(program: str) -> str:
    here: Sequence[str] = (sys.argv[0], sys.executable)
    for path in (os.path.join(os.path.dirname(os.path.abspath(each)), program) for each in here):
        if os.access(path, os.X_OK):
            return path
    path = shutil.which(program) or ""
    if not path:
        raise LaunchError(f"cannot find the command '{program}', which is installed with this one; install it anew")
    return path
