"""The errors of a re-exec. Each message is for the operator."""


class LoadFailed(Exception):
    """The configuration cannot be given to HAProxy."""
