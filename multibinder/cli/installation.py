"""The commands of this installation, for units that execute them."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from multibinder import MultibinderError

_COMMANDS = ("multibinder", "multibinder-haproxy")


class InstallError(MultibinderError):
    """The units cannot be installed; the message says why, and what to do."""


def commands_directory() -> Path:
    """Return the directory of this installation's commands. Raises InstallError."""
    beside_python = os.path.dirname(sys.executable)
    script = shutil.which(sys.argv[0]) if "/" not in sys.argv[0] else sys.argv[0]
    candidates = [os.path.dirname(os.path.abspath(script))] if script else []
    for directory in (*candidates, beside_python):
        if all(os.access(os.path.join(directory, command), os.X_OK) for command in _COMMANDS):
            break
    else:
        raise InstallError(
            f"there are no commands {' and '.join(_COMMANDS)} in {beside_python}; install the project with pip first"
        )
    # systemd.service(5): ExecStart= interprets quotes, backslashes, '$' and ';'. '%' is escaped below.
    if re.search(r"[\s\"'\\$;]", directory):
        raise InstallError(f"{directory!r} has a character that a unit's ExecStart= cannot have; install elsewhere")
    return Path(directory)
