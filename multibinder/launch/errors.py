"""The errors of the launcher. Each message is a sentence for the operator: what happened, to what, why, what to do.

::

    LaunchError
    ├── UsageError       the command line makes no sense
    ├── NoSuchInstance   nothing is known of an instance of that name
    ├── Unreachable      the instance's main process does not answer
    │   ├── NotRunning       there is no such process
    │   └── NotAnswering     it runs, and does not answer
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


class Unreachable(LaunchError):
    """The instance's main process does not answer."""


class NotRunning(Unreachable):
    """The instance has no process."""


class NotAnswering(Unreachable):
    """The instance has a process that does not answer: it is busy, or hangs."""


class NotTrusted(LaunchError):
    """Another user owns a file or directory, or could replace it."""
