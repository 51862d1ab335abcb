"""Get listeners from the binder, with numbers that leave HAProxy's master room for its own descriptors."""

import fcntl
import os

from multibinder.launch.direct import client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

#: A descriptor must be below HAProxy's maxsock, which follows maxconn, so the lowest ones keep their numbers. HAProxy's
#: master assumes a maxconn of 100 for itself, and exits if a descriptor that it opens is above 214 (measured on 2.6.12;
#: 235 on 3.2), so these numbers are left to it.
MASTERS_OWN = range(100, 200)


def obtain(
    path: str, slots: "Sequence[Mapping[str, Any]]", owner: str, wait_s: float, timeout_s: float = 10.0
) -> "tuple[dict[str, int], list[str]]":
    """Do what ``client.obtain`` does, and return inheritable descriptors. Raises Refused, Away."""
    descriptors, warnings = client.obtain(path, slots, owner, wait_s, timeout_s, kept_free=len(MASTERS_OWN))
    return {key: _place(fd) for key, fd in descriptors.items()}, warnings


def _place(fd: int) -> int:
    """Return the same socket, inheritable, with a number that leaves HAProxy's master room for its own descriptors."""
    if fd not in MASTERS_OWN:
        os.set_inheritable(fd, True)
        return fd
    placed = fcntl.fcntl(fd, fcntl.F_DUPFD, MASTERS_OWN.stop)
    os.close(fd)
    return placed
