"""Telling whoever detached us that we serve."""

from __future__ import annotations

import contextlib
import os

#: Set in the environment of a binder (or guard) whose stderr is a pipe to the process that detached it.
DETACHED = "MULTIBINDER_DETACHED"
READY = b"READY\n"


def tell_and_let_go() -> None:
    """Say it once, and leave that stderr: nobody reads it any more."""
    if os.environ.pop(DETACHED, None) is None:
        return
    pipe = os.dup(2)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)
    os.close(null)
    with contextlib.suppress(OSError):
        os.write(pipe, READY)
    os.close(pipe)
