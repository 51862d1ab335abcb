"""Read who may write to the control socket, and to the directories that lead to it."""

from __future__ import annotations

import os

from multibinder.observe.doctor.facts import FileMode


def read_control(path: str) -> tuple[FileMode, ...]:
    """Return the modes of the socket's file and of every directory above it; empty if one of them is missing."""
    modes = []
    path = os.path.realpath(path)
    while True:
        try:
            status = os.stat(path)
        except OSError:
            return ()
        modes.append(FileMode(path, status.st_mode & 0o7777, status.st_uid))
        if path == "/":
            return tuple(modes)
        path = os.path.dirname(path)
