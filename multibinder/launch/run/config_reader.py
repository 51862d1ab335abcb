"""Read the settings of an instance anew, for a reload: in a process of its own, which needs much that ``run`` does not.

That process is of the version that is installed now. If it cannot run, the reload is refused, and nothing is touched.
"""

from __future__ import annotations

import os
import sys

import msgspec

from multibinder.launch.errors import LaunchError
from multibinder.launch.run.children import Children
from multibinder.launch.run.hooks import how_it_ended
from multibinder.launch.run.settings import RunSettings, ServiceSettings
from multibinder.launch.run.spawn import Inheritance, spawn
from multibinder.launch.run.tasks import Loop, readable
from multibinder.launch.styles.draft import Draft

MODULE = "multibinder.cli.run_config"
_LIMIT_S = 30.0
_SIZE = 4 * 1024 * 1024


class ConfigRefused(LaunchError):
    """The file of settings cannot be read, or makes no sense."""

    phase = "config"


async def read_settings(
    settings: RunSettings, loop: Loop, children: Children, inheritance: Inheritance, environment: dict[str, str]
) -> ServiceSettings:
    """Return today's settings: those of the file, below the options of the command line. Raises ConfigRefused."""
    if settings.config is None:
        return settings.service
    command = [sys.executable, "-P", "-m", MODULE, settings.to_text()]
    try:
        reading, writing = os.pipe()
        try:
            started = spawn(Draft(command, environment, []), inheritance, writing, None)
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
    except OSError as error:
        raise ConfigRefused(f"{settings.config} cannot be read: {error.strerror}") from error
    process = children.started(started.pid)
    try:
        failure = await started.failure()
        said = b""
        while len(said) < _SIZE and await readable(reading, _LIMIT_S):
            more = os.read(reading, 65536)
            said += more
            if not more:
                break
        if not await process.ended.wait(_LIMIT_S):
            os.kill(process.pid, 9)
            raise ConfigRefused(f"{settings.config} was not read within {_LIMIT_S:g} s")
    finally:
        os.close(reading)
    if failure is not None:
        raise ConfigRefused(f"{settings.config} cannot be read: {sys.executable}: {failure.strerror}")
    if process.status != 0:
        text = said.decode(errors="replace").strip()
        last = text if not text.startswith("Traceback") else text.splitlines()[-1]
        how = how_it_ended(process.status) if process.status is not None else "ended"
        raise ConfigRefused(last or f"{settings.config} cannot be read: the process that reads it {how}")
    try:
        # A warning of Python may stand before it.
        return msgspec.json.decode(said.rpartition(b"\n")[2], type=ServiceSettings)
    except msgspec.DecodeError as error:
        raise ConfigRefused(f"{settings.config} cannot be read: {error}; is an upgrade under way?") from error
