"""Take and pass on descriptors through LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES (sd_listen_fds(3))."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import sys
from collections.abc import Callable, MutableMapping, Sequence

FIRST = 3
#: The announced descriptors that are not open are reported one by one up to this number.
_NOT_OPEN_MAX = 20
#: No number of descriptors has as many digits as this.
_DIGITS = 12
VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def take_listen_fds(
    environment: MutableMapping[str, str], not_open: Callable[[int, OSError], None] = lambda descriptor, error: None
) -> list[tuple[str, int]]:
    """Return the name and number of each descriptor that was passed to this process, and remove the variables.

    The caller owns the descriptors, which are close-on-exec from now on. A descriptor without a name has an empty one.
    ``not_open`` is called with each number that was announced and is not open, and with the error.
    """
    given = {name: environment.pop(name, "") for name in VARIABLES}
    if given["LISTEN_PID"] != str(os.getpid()) or not re.fullmatch("[0-9]+", given["LISTEN_FDS"]):
        return []
    names = given["LISTEN_FDNAMES"].split(":")
    # int() refuses more than 4,300 digits.
    announced = given["LISTEN_FDS"].lstrip("0")
    count = int(announced or "0") if len(announced) < _DIGITS else sys.maxsize
    room = _highest_open() - FIRST + 1
    found, missing = [], []
    for index in range(min(count, room + _NOT_OPEN_MAX)):
        try:
            os.set_inheritable(FIRST + index, False)
        except OSError as error:
            missing.append((FIRST + index, error))
            continue
        found.append((names[index] if index < len(names) else "", FIRST + index))
    if count > room + _NOT_OPEN_MAX:
        what = f"LISTEN_FDS announces {announced[:_DIGITS]}, and none is open from this number on"
        missing[-_NOT_OPEN_MAX:] = [(FIRST + room, OSError(errno.EBADF, what))]
    # The log may open a descriptor for itself, which must not be one of those that are looked at.
    for number, why in missing:
        not_open(number, why)
    return found


def _highest_open() -> int:
    try:
        listing = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        return max((number for number in map(int, os.listdir(listing)) if number != listing), default=0)
    finally:
        os.close(listing)


def pass_listen_fds(descriptors: Sequence[tuple[str, int]], environment: MutableMapping[str, str]) -> None:
    """Move descriptors (name, number) to the numbers where ``take_listen_fds`` finds them, before or after execve(2).

    Afterwards they have the numbers from 3 on, in this order, and are inheritable. The caller must have closed every
    other descriptor with such a number. The variables name this PID.
    """
    move_to_front([number for _, number in descriptors])
    environment.update(variables([name for name, _ in descriptors]))


def variables(names: Sequence[str]) -> dict[str, str]:
    """Return the variables that announce descriptors with these names to the program that this process becomes."""
    values = (str(os.getpid()), str(len(names)), ":".join(names))
    return dict(zip(VARIABLES, values, strict=True))


def move_to_front(numbers: list[int]) -> None:
    """Move descriptors to the numbers from 3 on, in this order, and make them inheritable.

    ``numbers`` is updated with each move, so that it is right even if one fails. Raises OSError then.
    """
    index_of = {number: index for index, number in enumerate(numbers)}
    above = FIRST + len(numbers)
    for index, number in enumerate(numbers):
        target = FIRST + index
        if number == target:
            os.set_inheritable(target, True)
            continue
        if (displaced := index_of.get(target)) is not None:
            numbers[displaced] = fcntl.fcntl(target, fcntl.F_DUPFD_CLOEXEC, above)
            index_of[numbers[displaced]] = displaced
            # dup2(2) closes what has the number now.
        os.dup2(number, target)
        numbers[index] = target
        os.close(number)
        index_of.pop(number)
        index_of[target] = index
