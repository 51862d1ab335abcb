"""The errors of the launcher. Each message is a sentence for the operator: what happened, to what, why, what to do.

::

    LaunchError
    ├── UsageError       the command line makes no sense
    ├── NoSuchInstance   nothing is known of an instance of that name
    ├── NotRunning       the instance has no process that answers
    └── NotTrusted       another user owns a file or directory, or could replace it

A driver adds its own.
"""

from __future__ import annotations


class LaunchError(Exception):
    """The launcher, or a driver, cannot do what it was asked to do.

    ``phase`` says how far a start or reload got before it failed; summary.json has it as ``last_failure_phase``.
    """

    phase: str = "load"


class UsageError(LaunchError):
    """The command line makes no sense."""


class NoSuchInstance(LaunchError):
    """Nothing is known of an instance of that name."""


class NotRunning(LaunchError):
    """The instance has no process that answers."""


class NotTrusted(LaunchError):
    """Another user owns a file or directory, or could replace it."""
