"""Checks of a configuration that change neither a listener nor the running HAProxy."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from multibinder import SOCKET_VARIABLE
from multibinder_haproxy import sockets
from multibinder_haproxy.arguments import Argument, for_check, join, parse
from multibinder_haproxy.config.model import Config, Slot
from multibinder_haproxy.errors import BinderAway, ConfigRefused
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.invocation import Invocation, without_haproxys_variables
from multibinder_haproxy.master import Master, environment_of

#: Thousands of certificates take minutes to load. Without a limit, a check that hangs would never report it.
_HAPROXY_TIMEOUT_S = 600


def check_reload(instance: Instance, invocation: Invocation) -> Config:
    """Return the configuration that a reload would load. Raises LaunchError if the reload would fail.

    It changes nothing, so it cannot find every fault.
    """
    master = Master(invocation.master_socket).processes().master
    loaded = instance.read_loaded()
    environment = environment_of(master)
    config = invocation.render(environment)
    held = {slot.key: slot for slot in loaded.config.slots} if loaded else {}
    _check_new_binds(invocation, [slot for slot in config.slots if held.get(slot.key) != slot])
    check_with_haproxy(invocation, config, environment)
    return config


def check_start(invocation: Invocation, environment: Mapping[str, str]) -> tuple[Config, list[str]]:
    """Return the configuration that a start would load, and a sentence for each check that was not possible.

    Raises LaunchError if the start would fail. Changes nothing.
    """
    config = invocation.render(environment)
    check_with_haproxy(invocation, config, environment)
    if not invocation.binder:
        return config, [f"{SOCKET_VARIABLE} is not set: HAProxy would bind by itself"]
    try:
        sockets.check_binds(invocation.binder, config.slots, invocation.owner)
    except BinderAway as error:
        return config, [f"whether the binder would grant the binds is unknown: {error}"]
    return config, []


def check_with_haproxy(invocation: Invocation, config: Config, environment: Mapping[str, str]) -> None:
    """Run ``haproxy -c`` on the configuration, with placeholders for its sockets.

    Raises ConfigRefused with HAProxy's message.
    """
    with (
        tempfile.TemporaryDirectory(prefix="multibinder-check-") as directory,
        sockets.placeholders(config.slots) as fds,
    ):
        files = config.fill(fds) if invocation.binder else config.plain()
        _write(directory, invocation, files)
        arguments = [
            Argument(argument.flag, tuple(_rebase(value, invocation.directory, directory) for value in argument.values))
            for argument in for_check(parse(invocation.arguments))
        ]
        try:
            finished = subprocess.run(  # noqa: S603
                [invocation.haproxy, *join(arguments)],
                env=without_haproxys_variables(environment),
                cwd=invocation.cwd,
                pass_fds=list(fds.values()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=_HAPROXY_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ConfigRefused(f"{invocation.haproxy} -c did not end within {_HAPROXY_TIMEOUT_S} s") from error
        except OSError as error:
            raise ConfigRefused(f"cannot run {invocation.haproxy}: {error.strerror}") from error
    if finished.returncode != 0:
        output = finished.stdout.replace(f"{directory}/", "").strip()
        raise ConfigRefused(f"HAProxy refuses the configuration (exit code {finished.returncode}):\n{output}")


def _check_new_binds(invocation: Invocation, slots: Sequence[Slot]) -> None:
    if not invocation.binder:
        return
    try:
        sockets.check_binds(invocation.binder, slots, invocation.owner)
    except BinderAway as error:
        new = ", ".join(slot.key for slot in slots)
        raise BinderAway(f"the new configuration binds {new}, and the binder cannot be asked: {error}") from error


def _write(directory: str, invocation: Invocation, files: Mapping[str, bytes]) -> None:
    with _write_errors_explained(directory):
        for target in invocation.rendered_directories:
            os.makedirs(os.path.join(directory, target), exist_ok=True)
        for target, content in files.items():
            with open(os.path.join(directory, target), "wb") as file:
                file.write(content)


def _rebase(value: str, old: str, new: str) -> str:
    """Return the path below ``new`` for a path below ``old``. Any other value stays as it is."""
    return os.path.join(new, value.removeprefix(old + "/")) if value.startswith(old + "/") else value


@contextlib.contextmanager
def _write_errors_explained(directory: str) -> Iterator[None]:
    """Turn an OSError into a ConfigRefused with a remedy."""
    try:
        yield
    except OSError as error:
        raise ConfigRefused(
            f"cannot check: writing to {directory} failed: {(error.strerror or str(error)).lower()}; "
            "free some space there or set TMPDIR"
        ) from error
