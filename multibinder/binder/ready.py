"""The report of a detached binder or guard to the process that started it: ``multibinder serve --detach``."""

from __future__ import annotations

import os

from multibinder.kernel.line_writer import write_now

#: Set in the environment of a binder or guard whose stderr is a pipe to the process that detached it.
DETACHED = "MULTIBINDER_DETACHED"
READY = b"READY\n"


def report_ready() -> None:
    """Write READY to the process that detached us, and replace stderr by /dev/null: that process exits now.

    Does nothing if this process is not detached, or has reported before. Works without a free descriptor.
    """
    if os.environ.pop(DETACHED, None) is None:
        return
    # The input of a detached process is /dev/null.
    try:
        pipe = os.dup(2)
    except OSError:  # no descriptor is free
        write_now(2, READY)
        os.dup2(0, 2)
    else:
        os.dup2(0, 2)
        write_now(pipe, READY)
        os.close(pipe)
