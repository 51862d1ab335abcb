"""Files that we write into directories of an operator, with a seal by which a change by hand is noticed.

The first line names the command that has written the file, and has the digest of the rest.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from multibinder.kernel.files import replace

_SEAL = re.compile(r"\A# Written by '(?P<writer>[^']*)'; changed by hand if not sha256 (?P<digest>[0-9a-f]{64})\n")
_MODE = 0o644  # the mode that systemd expects of units


def sealed(writer: str, text: str) -> str:
    """Return ``text`` with a seal in front. ``writer`` is the command that writes it."""
    return f"# Written by '{writer}'; changed by hand if not sha256 {_digest(text)}\n{text}"


def state_of(path: Path, writer: str, content: str = "") -> tuple[str, str]:
    """Return the state of the file that is at ``path`` now, compared with ``content``, and a detail for a message.

    The state is ``absent``, ``unchanged``, ``outdated`` (written by another version of this command) or ``changed`` (by
    a user). Raises OSError.
    """
    try:
        if path.is_symlink():
            return "changed", f"a link to {os.readlink(path)}"
        present = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return "absent", ""
    if present == content:
        return "unchanged", ""
    seal = _SEAL.match(present)
    if seal and seal["writer"] == writer and seal["digest"] == _digest(present[seal.end() :]):
        return "outdated", ""
    return "changed", "changed by hand" if seal else "not written by this command"


def write(path: Path, content: str) -> None:
    """Replace the file atomically and durably; its directory is made if it is missing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(str(path), content.encode(), _MODE, sync=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
