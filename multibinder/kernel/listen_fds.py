"""Take and pass on descriptors through LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES (sd_listen_fds(3))."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, MutableMapping, Sequence

FIRST = 3
VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def take_listen_fds(
    environment: MutableMapping[str, str], not_open: Callable[[int, OSError], None] = lambda descriptor, error: None
) -> list[tuple[str, int]]:
    """Return the name and number of each descriptor that was passed to this process, and remove the variables.

    The caller owns the descriptors, which are close-on-exec from now on. A descriptor without a name has an empty one.
    ``not_open`` is called with each number that was announced and is not open, and with the error.
    """
    given = {name: environment.pop(name, "") for name in VARIABLES}
    if given["LISTEN_PID"] != str(os.getpid()) or not given["LISTEN_FDS"].isdigit():
        return []
    names = given["LISTEN_FDNAMES"].split(":")
    found = []
    for index in range(int(given["LISTEN_FDS"])):
        try:
            os.set_inheritable(FIRST + index, False)
        except OSError as error:
            not_open(FIRST + index, error)
            continue
        found.append((names[index] if index < len(names) else "", FIRST + index))
    return found


def pass_listen_fds(descriptors: Sequence[tuple[str, int]], environment: MutableMapping[str, str]) -> None:
    """Move descriptors (name, number) to the numbers where ``take_listen_fds`` finds them, before or after execve(2).

    Afterwards they have the numbers from 3 on, in this order, and are inheritable. The caller must have closed every
    other descriptor with such a number. The variables name this PID.
    """
    index_of = {number: index for index, (_, number) in enumerate(descriptors)}
    current = [number for _, number in descriptors]
    above = FIRST + len(descriptors)
    for index in range(len(current)):
        target = FIRST + index
        if (displaced := index_of.get(target)) is not None and displaced > index:
            current[displaced] = fcntl.fcntl(target, fcntl.F_DUPFD_CLOEXEC, above)
            index_of[current[displaced]] = displaced
        if current[index] == target:
            os.set_inheritable(target, True)
        else:
            os.dup2(current[index], target)
            os.close(current[index])
    environment["LISTEN_PID"] = str(os.getpid())
    environment["LISTEN_FDS"] = str(len(current))
    environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in descriptors)
