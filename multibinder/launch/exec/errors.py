"""The error of ``exec``. Its message is for the operator."""


class CommandFailed(Exception):
    """The command is not there, or cannot be executed. ``exit_code`` is that of env(1) for this."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
