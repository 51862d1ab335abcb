"""The errors of the wrapper. Each message is a sentence for the operator: what happened, to what, why, what to do."""

from __future__ import annotations


class WrapperError(Exception):
    """The wrapper cannot do what it was asked to do."""


class UsageError(WrapperError):
    """The command line makes no sense."""


class TemplateFailure(WrapperError):
    """A template cannot be rendered; the message begins with its file and line."""


class ConfigRefused(WrapperError):
    """HAProxy refuses a configuration; the message ends with HAProxy's own."""


class BindRefused(WrapperError):
    """The binder does not grant what a configuration binds, or cannot be asked."""


class BinderAway(BindRefused):
    """The binder does not answer."""


class NotTrusted(WrapperError):
    """A file or directory is another user's, or another user could replace it."""


class NotRunning(WrapperError):
    """There is no master process to talk to."""


class NoSuchInstance(WrapperError):
    """Nothing is known of an instance of that name."""


class ReloadFailed(WrapperError):
    """HAProxy did not load the new configuration. The old worker serves as before."""
