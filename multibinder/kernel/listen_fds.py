"""Taking and passing on descriptors through LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES (sd_listen_fds(3))."""

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

    The descriptors are close-on-exec from now on, and the caller's. A name is empty where none was given.
    ``not_open`` is told of each number that was announced and is not open.
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
    """Move descriptors (name, number) to where ``take_listen_fds`` of this PID looks for them, after exec or without.

    Afterwards they have the numbers from 3 on, in this order, and are inheritable. The caller must have closed
    everything else that has such a number.
    """
    place = {number: index for index, (_, number) in enumerate(descriptors)}
    current = [number for _, number in descriptors]
    above = FIRST + len(descriptors)
    for index in range(len(current)):
        target = FIRST + index
        if (displaced := place.get(target)) is not None and displaced > index:
            current[displaced] = fcntl.fcntl(target, fcntl.F_DUPFD_CLOEXEC, above)
            place[current[displaced]] = displaced
        if current[index] == target:
            os.set_inheritable(target, True)
        else:
            os.dup2(current[index], target)
            os.close(current[index])
    environment["LISTEN_PID"] = str(os.getpid())
    environment["LISTEN_FDS"] = str(len(current))
    environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in descriptors)
