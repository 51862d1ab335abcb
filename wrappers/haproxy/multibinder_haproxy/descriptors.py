"""The descriptors of ``haproxy -c``: those that HAProxy would inherit, or sockets that stand in for them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Callable, Collection, Iterator

import msgspec

from multibinder.launch.direct import descriptor_limit
from multibinder.launch.errors import LaunchError
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.plan import text_of
from multibinder_haproxy.reexec.binder import MASTERS_OWN

#: The socket of each table in /proc/PID/net. The inode's column is counted from 0.
_TABLES = {
    "tcp": (socket.AF_INET, socket.SOCK_STREAM, 9),
    "tcp6": (socket.AF_INET6, socket.SOCK_STREAM, 9),
    "unix": (socket.AF_UNIX, socket.SOCK_STREAM, 6),
    "udp": (socket.AF_INET, socket.SOCK_DGRAM, 9),
    "udp6": (socket.AF_INET6, socket.SOCK_DGRAM, 9),
}
#: A descriptor that the user names; a slot of ours is fd@{…}. The number may come from a variable.
_OWN_FD = re.compile(r"fd@(?!\{)(\d*)")
_SOCKET = re.compile(r"socket:\[(\d+)\]")


class Inherited(msgspec.Struct, frozen=True):
    """Descriptors that ``haproxy -c`` inherits by their numbers. ``put_in_place`` runs in its process."""

    numbers: Collection[int] = ()
    put_in_place: Callable[[], None] | None = None


def inherited_by_this_process() -> Inherited:
    """Return the descriptors that a program executed by this process would inherit, without the standard ones."""
    numbers = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the directory's own descriptor is closed by now
            if int(name) > 2 and os.get_inheritable(int(name)):
                numbers.append(int(name))
    return Inherited(numbers)


def named_by(config: Config, files: Collection[str]) -> list[int] | None:
    """Return the numbers of each ``fd@`` that is none of our slots; None if there is no such ``fd@``.

    ``files`` belong to the configuration and are not rendered. A number that comes from a variable is left out.
    """
    texts = [*config.files.values(), *(text_of(path) for path in files)]
    found = [number for text in texts for number in _OWN_FD.findall(text)]
    return [int(number) for number in found if number] if found else None


@contextlib.contextmanager
def stand_ins(master: int, ours: Collection[int], named: Collection[int]) -> Iterator[Inherited]:
    """Open a socket for each one that HAProxy's master has beside ``ours``, with its number and family.

    Only ``named`` get one, of the family AF_INET, if the master's descriptors cannot be read. A number that is in use
    in this process is put in place in the child.
    """
    wanted = _sockets_of(master, ours)
    if wanted is None:
        wanted = dict.fromkeys(set(named) - set(ours), (socket.AF_INET, socket.SOCK_STREAM))
    with contextlib.ExitStack() as stack:
        elsewhere: dict[int, int] = {}
        for number, (family, kind) in wanted.items():
            with socket.socket(family, kind) as sock:
                # Above all of them: no dup2() in the child may replace a socket that it still needs.
                fd = fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, max(wanted) + 1)
            stack.callback(os.close, fd)
            if _is_open(number):
                elsewhere[number] = fd
            else:
                # This process has the number, so that no descriptor that it opens later gets it.
                os.dup2(fd, number)
                stack.callback(os.close, number)

        def put_in_place() -> None:
            for number, fd in elsewhere.items():
                os.dup2(fd, number)

        yield Inherited(list(wanted), put_in_place if elsewhere else None)


def make_room(more: int, what: str) -> None:
    """Let this process have ``more`` descriptors. Raises LaunchError at the hard limit."""
    if too_few := descriptor_limit.make_room(more, len(MASTERS_OWN)):
        needed, allowed = too_few
        raise LaunchError(
            f"{what} need {needed} open files at once, and RLIMIT_NOFILE allows {allowed} here; raise it "
            "(LimitNOFILE= in the unit, 'ulimit -n' in a shell)"
        )


def _sockets_of(pid: int, without: Collection[int]) -> dict[int, tuple[int, int]] | None:
    """Return family and type of each socket of a process by its number, except ``without``.

    Returns None if the process does not let us read its descriptors.
    """
    inodes: dict[str, list[int]] = {}
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return None
    for name in names:
        with contextlib.suppress(OSError):
            match = _SOCKET.fullmatch(os.readlink(f"/proc/{pid}/fd/{name}"))
            if match and int(name) > 2 and int(name) not in without:
                inodes.setdefault(match[1], []).append(int(name))
    found: dict[int, tuple[int, int]] = {}
    for table, (family, kind, column) in _TABLES.items():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/net/{table}") as lines:
            for line in lines:
                words = line.split(maxsplit=column + 1)
                if len(words) > column:
                    found |= dict.fromkeys(inodes.get(words[column], ()), (family, kind))
    return found


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True
