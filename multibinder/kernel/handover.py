"""Execute a program that inherits descriptors, and go on as before if the kernel refuses."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
from collections.abc import Mapping, Sequence

from multibinder.kernel.listen_fds import FIRST, move_to_front, variables

#: The largest string of an environment or of arguments, with its final NUL (MAX_ARG_STRLEN, execve(2)).
MAX_STRING_BYTES = 128 * 1024
#: Numbers above those of the passed descriptors for the others that this process has open.
_SPARE = 16


def execute(
    command: Sequence[str], descriptors: Sequence[tuple[str, int]], environment: Mapping[str, str]
) -> tuple[list[tuple[str, int]], OSError]:
    """Execute a program that finds ``descriptors`` (name, number) as sd_listen_fds(3) describes.

    Return only if that fails: the descriptors, some with another number than before, close-on-exec, and the error. All
    other descriptors of this process have their numbers again, and the environment of this process is unchanged.
    """
    names = [name for name, _ in descriptors]
    numbers = [number for _, number in descriptors]
    displaced: dict[int, int] = {}
    try:
        _allow(numbers)
        # Other objects of this process (the log) know these descriptors by their numbers.
        _move_away(numbers, displaced)
        move_to_front(numbers)
        os.execve(command[0], list(command), {**environment, **variables(names)})
    except OSError as error:
        failure = error
    for number in numbers:
        os.set_inheritable(number, False)
    _move_back(numbers, displaced)
    return list(zip(names, numbers, strict=True)), failure


def names_bytes(names: Sequence[str]) -> int:
    """Return the size of LISTEN_FDNAMES with these names, as execve(2) counts it."""
    return len(variables(names)["LISTEN_FDNAMES"].encode()) + len("LISTEN_FDNAMES=") + 1


def _allow(numbers: Sequence[int]) -> None:
    """Make RLIMIT_NOFILE allow the numbers that the descriptors will have, and some more.

    Raises OSError if it is too low, because another process has lowered it: dup2(2) would fail half way.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if numbers:
        os.close(fcntl.fcntl(numbers[0], fcntl.F_DUPFD_CLOEXEC, FIRST + len(numbers) + _SPARE))


def _move_away(numbers: Sequence[int], displaced: dict[int, int]) -> None:
    """Move every other descriptor in the range of the passed ones out of it. ``displaced`` notes where they are."""
    passed = set(numbers)
    above = FIRST + len(numbers)
    for number in range(FIRST, above):
        if number not in passed and _is_open(number):
            displaced[number] = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, above)


def _move_back(numbers: list[int], displaced: Mapping[int, int]) -> None:
    index_of = {number: index for index, number in enumerate(numbers)}
    for number, at in displaced.items():
        if (index := index_of.get(number)) is not None:
            numbers[index] = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, FIRST)
            index_of[numbers[index]] = index
        os.dup2(at, number, inheritable=False)
        os.close(at)


def _is_open(number: int) -> bool:
    try:
        fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError:
        return False
    return True
