"""The errors of a re-exec. Each message is for the operator."""


class LoadFailed(Exception):
    """The configuration cannot be given to HAProxy."""


class Refused(Exception):
    """The binder answered, and granted nothing."""


class Away(Exception):
    """The binder does not answer."""
