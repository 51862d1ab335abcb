"""Run the command line with the environment and the privileges that a test needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.requirements import require
from tests.support.waiting import PATIENCE_S

#: Variables that would change what a child does. A child of a test never inherits them.
_OURS = ("MULTIBINDER_SOCK", "NOTIFY_SOCKET", "JOURNAL_STREAM", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if key not in _OURS}
    return {**inherited, **(extra or {})}


def without_privileges() -> list[str]:
    """Return the words before a command that take all capabilities from it, also as root. Skips without setpriv."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    require("setpriv", setpriv, "dropping root's capabilities needs setpriv (util-linux)")
    return [str(setpriv), "--bounding-set=-all", "--inh-caps=-all"]


#: The command line of ``multibinder`` in the environment of the tests. Other users may be unable to execute it:
#: tests.support.installation has one for them.
PROGRAM = (sys.executable, "-m", "multibinder")


def multibinder(
    *arguments: str | os.PathLike[str],
    program: Sequence[str] = PROGRAM,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    umask: int = -1,
) -> subprocess.CompletedProcess[str]:
    """Run ``multibinder`` with these arguments to its end."""
    return subprocess.run(
        [*prefix, *program, *(os.fspath(argument) for argument in arguments)],
        env=clean_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        umask=umask,
        check=False,
    )


class BrokenCode:
    """A directory for the front of PYTHONPATH that can break a module that all code imports, and mend it again."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._module = directory / "msgspec.py"
        path = [str(directory), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {"PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}

    def breaks(self, why: str) -> None:
        self._module.write_text(f"raise ImportError({why!r})\n")

    def mend(self) -> None:
        self._module.unlink()
