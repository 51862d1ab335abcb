"""The command lines of the binder's and the guard's process, which ``multibinder serve`` becomes.

It imports little: ``serve`` only checks its options, and what the binder needs is imported by the binder.
"""

from __future__ import annotations

import logging
import sys

import msgspec

from multibinder.binder.settings import Settings

BINDER_MODULE, GUARD_MODULE = "multibinder.cli.binder_main", "multibinder.cli.guard_main"


class Invocation(msgspec.Struct, frozen=True):
    """The checked options of ``multibinder serve``, passed on as one JSON argument."""

    settings: Settings
    log_format: str = "text"
    log_level: int = logging.INFO
    log_file: str | None = None


def binder_command(settings: str) -> list[str]:
    """Return the command that becomes the binder, in the version that is installed now."""
    return _command(BINDER_MODULE, settings)


def guard_command(settings: str) -> list[str]:
    """Return the command that becomes the guard, in the version that is installed now."""
    return _command(GUARD_MODULE, settings)


def _command(module: str, settings: str) -> list[str]:
    # -P keeps the working directory out of sys.path: root must not import what another user placed there.
    return [sys.executable, "-P", "-m", module, settings]
