"""Whether a configuration would do, without touching a listener or the running HAProxy."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping

from multibinder_haproxy import sockets
from multibinder_haproxy.arguments import Argument, for_check, join, parse
from multibinder_haproxy.config.jinja import Config
from multibinder_haproxy.errors import ConfigRefused
from multibinder_haproxy.invocation import Invocation, without_haproxys_own

#: Certificates by the thousand take minutes to load; a check that hangs for ever helps nobody.
_HAPROXY_TIMEOUT_S = 600


def check_with_haproxy(invocation: Invocation, config: Config, environment: Mapping[str, str]) -> str:
    """Run ``haproxy -c`` on the configuration, with placeholders for its sockets; what HAProxy said.

    Raises ConfigRefused with HAProxy's message.
    """
    with (
        tempfile.TemporaryDirectory(prefix="multibinder-check-") as directory,
        sockets.placeholders(config.slots) as fds,
    ):
        files = config.fill(fds) if invocation.binder else config.plain()
        _write(directory, invocation, files)
        arguments = [
            Argument(argument.flag, tuple(_moved(value, invocation.directory, directory) for value in argument.values))
            for argument in for_check(parse(invocation.arguments))
        ]
        try:
            finished = subprocess.run(  # noqa: S603
                [invocation.haproxy, *join(arguments)],
                env=without_haproxys_own(environment),
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
    said = finished.stdout.replace(f"{directory}/", "").strip()
    if finished.returncode != 0:
        raise ConfigRefused(f"HAProxy refuses the configuration (exit code {finished.returncode}):\n{said}")
    return said


def _write(directory: str, invocation: Invocation, files: Mapping[str, str]) -> None:
    with _explained(directory):
        for source in invocation.sources:
            if source.is_directory:
                os.makedirs(os.path.join(directory, source.target), exist_ok=True)
        for target, text in files.items():
            with open(os.path.join(directory, target), "w", encoding="utf-8", newline="") as file:
                file.write(text)


def _moved(value: str, old: str, new: str) -> str:
    return os.path.join(new, value.removeprefix(old + "/")) if value.startswith(old + "/") else value


@contextlib.contextmanager
def _explained(directory: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigRefused(
            f"cannot check: writing to {directory} failed: {(error.strerror or str(error)).lower()}; "
            "free some space there or set TMPDIR"
        ) from error
