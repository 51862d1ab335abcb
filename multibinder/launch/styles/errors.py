"""The error of a style. Its message is for the operator."""


class StyleError(Exception):
    """The program cannot be told of its listeners in the way that was asked for."""
