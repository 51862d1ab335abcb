"""The errors of the direct client. Each message is for the operator."""


class Refused(Exception):
    """The binder answered, and granted nothing."""


class Away(Exception):
    """The binder does not answer."""
