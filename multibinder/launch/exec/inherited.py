"""Descriptors that this process has from its caller: whether one is where a listener of the program belongs."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_FIRST = 3


def sockets_of_caller(environment: "Mapping[str, str]") -> "list[int]":
    """Return the descriptors that LISTEN_FDS gives to this process (sd_listen_fds(3)), as far as they are open."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environment.get("LISTEN_FDS", "")
    if not (count.isascii() and count.isdigit() and len(count) < 10):
        return []
    return [fd for fd in _open_descriptors() if _FIRST <= fd < _FIRST + int(count)]


def in_the_way(numbers: "Collection[int]") -> "list[tuple[int, str]]":
    """Return each of these numbers that the caller has left open for the program, and what it refers to (proc(5))."""
    found = []
    for number in sorted(numbers):
        try:
            if os.get_inheritable(number):
                found.append((number, _target(number)))
        except OSError:
            pass  # it is closed
    return found


def keep_from_program(descriptors: "Collection[int]") -> None:
    """Let execve(2) close these descriptors."""
    for fd in descriptors:
        try:
            os.set_inheritable(fd, False)
        except OSError:
            pass  # it is closed


def _open_descriptors() -> "list[int]":
    return sorted(int(name) for name in os.listdir("/proc/self/fd"))


def _target(number: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return "a file"
