"""The errors of ``run``. Each message is a sentence for the operator."""

from __future__ import annotations

from collections.abc import Sequence

from multibinder.launch.errors import LaunchError


class StartFailed(LaunchError):
    """A copy did not start, or did not become ready. ``output`` has its last lines.

    ``exit_code`` is that of env(1) if its command cannot be executed at all: 126 or 127; else None.
    """

    phase = "start"

    def __init__(self, message: str, output: Sequence[str] = (), exit_code: int | None = None) -> None:
        super().__init__(message)
        self.output = list(output)
        self.exit_code = exit_code
