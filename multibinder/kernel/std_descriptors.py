"""Standard descriptors that are closed: the next file that a process opens would get their numbers."""

import os
import sys

_STANDARD = (0, 1, 2)


def open_std_descriptors() -> None:
    """Open /dev/null for each of the descriptors 0, 1 and 2 that is closed.

    Call this before anything is opened: with descriptor 2 closed, the first socket would become stderr. Without
    /dev/null (a chroot), a pipe takes its place: nobody reads it, and each write fails. Raises OSError if that fails
    too.
    """
    for number in _STANDARD:
        try:
            os.fstat(number)
        except OSError:
            _fill(number)
    # Python has None for a stream whose descriptor was closed when it started.
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def _fill(number: int) -> None:
    try:
        opened = os.open(os.devnull, os.O_RDWR)
    except OSError:
        reading, opened = os.pipe()
        if number != reading:
            os.dup2(opened, number)
            os.close(opened)
            os.close(reading)
            return
        # The free number went to the reading end, which becomes the standard descriptor.
        os.close(opened)
        opened = reading
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    os.set_inheritable(number, True)
