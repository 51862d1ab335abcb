"""The errors of the wrapper, beside those of the launcher (multibinder.launch.errors).

::

    LaunchError
    ├── TemplateFailure   a template cannot be rendered
    ├── ConfigRefused     HAProxy refuses a configuration
    ├── HaproxyTooOld     the program is a HAProxy that cannot be run here
    ├── BindRefused       the binder does not grant what a configuration binds
    │   └── BinderAway    the binder does not answer
    ├── ReloadFailed      HAProxy did not load the new configuration
    ├── FellBack          HAProxy got the last good configuration
    └── NeverCameUp       no worker came up with a configuration, and nothing has changed since
"""

from __future__ import annotations

from multibinder.launch.errors import LaunchError


class TemplateFailure(LaunchError):
    """A template cannot be rendered; the message begins with its file and line."""

    phase = "template"


class ConfigRefused(LaunchError):
    """HAProxy refuses a configuration; the message ends with HAProxy's own."""

    phase = "check"


class HaproxyTooOld(LaunchError):
    """The program is a HAProxy that cannot be run here."""

    phase = "check"


class BindRefused(LaunchError):
    """The binder does not grant what a configuration binds, or cannot be asked."""

    phase = "binds"


class BinderAway(BindRefused):
    """The binder does not answer."""


class ReloadFailed(LaunchError):
    """HAProxy did not load the new configuration."""


class FellBack(LaunchError):
    """HAProxy got the last good configuration; the message is the reason, and ``phase`` that of the failure."""

    def __init__(self, reason: str, phase: str) -> None:
        super().__init__(reason)
        self.phase = phase


class NeverCameUp(LaunchError):
    """No worker came up with a configuration, and nothing has changed since."""
