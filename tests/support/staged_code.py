"""Run statements in the new code of an upgrade: in its rehearsal, or in its real start."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.support.installation import CHECKOUT

_WHEN = {
    "rehearsal": "MULTIBINDER_REHEARSAL",
    "start": "MULTIBINDER_UPGRADED",
    "start of the guard": "MULTIBINDER_GUARDED_PID",
}


class StagedCode:
    """A directory for the front of PYTHONPATH whose ``sitecustomize`` runs statements at a stage of an upgrade.

    ``python`` is a symbolic link to the interpreter that a test may take away.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._module = directory / "sitecustomize.py"
        self.python = directory / "python"
        self.python.symlink_to(sys.executable)
        # The interpreter behind the link finds no virtual environment.
        path = [str(directory), str(CHECKOUT), *(entry for entry in sys.path if entry.endswith("-packages"))]
        self.environment = {"PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}
        self.program = (str(self.python), "-m", "multibinder")

    def runs(self, stage: str, statements: str) -> None:
        """Run ``statements`` at a stage: the ``rehearsal``, or the ``start`` of the new version that follows it."""
        body = "".join(f"    {line}\n" for line in statements.splitlines())
        self._module.write_text(f"import os, sys, signal, time\nif {_WHEN[stage]!r} in os.environ:\n{body}")

    def mend(self) -> None:
        self._module.unlink(missing_ok=True)
