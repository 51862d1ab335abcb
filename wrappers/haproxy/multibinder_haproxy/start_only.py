"""Lines with which only a start of HAProxy fails, as far as that is certain.

``haproxy -c`` neither changes its root directory nor binds a socket. A new worker that dies on that takes its master
with it up to HAProxy 2.6. A line that HAProxy may not read, or that a variable completes, is left out.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

from multibinder_haproxy.config import lines
from multibinder_haproxy.config.lines import Line
from multibinder_haproxy.config.model import Config

_FAILS = "only a start can tell, and it fails"
#: The sockets and pipes that HAProxy opens beside two descriptors for each connection and one for each listener
#: (measured on 2.4 to 3.5: 24 or 28 with one thread).
_OF_ITS_OWN = 24
#: A unit's RuntimeDirectory= and PrivateTmp= are there once it starts.
_MADE_FOR_A_START = ("/run/", "/var/run/", "/tmp/", "/var/tmp/")  # noqa: S108
#: capabilities(7): who has it may raise its own hard limits, as HAProxy then does.
_SYS_RESOURCE = 1 << 24


def foretold(config: Config, master: int | None) -> list[str]:
    """Return a sentence for each line with which HAProxy will not start.

    ``master`` is the process that would load it; None for a start, of which the supervisor may have other limits and
    make directories first.
    """
    in_global = [
        (f"{file}:{line.number}", line)
        for file, text in config.files.items()
        for line in lines.read(text)
        if line.section == "global"
    ]
    certain = [(where, line) for where, line in in_global if _is_certain(line, where, config)]
    found = [
        f"{where}: {sentence}; {_FAILS}" for where, line in certain for sentence in _without_directory(line, master)
    ]
    if any(line.keyword == "unix-bind" for _, line in in_global):
        found = []  # it may put a prefix before the path
    chroots = [(where, line) for where, line in in_global if line.keyword == "chroot"]
    # The first one counts, also if it is in a condition.
    if chroots and chroots[0] in certain:
        where, line = chroots[0]
        found += [f"{where}: {it}; {_FAILS}" for it in _without_root(line, master)]
    return found + _too_few_descriptors([line for _, line in certain], len(config.slots), master)


def _is_certain(line: Line, where: str, config: Config) -> bool:
    file, _, number = where.rpartition(":")
    return not line.blocks and "$" not in config.files[file].split("\n")[int(number) - 1]


def _without_root(line: Line, master: int | None) -> Iterator[str]:
    path = str(line.arguments[0]) if line.arguments else ""
    if path.startswith("/") and not _may_exist(path, master):
        yield f"chroot {path}: there is no such directory"


def _without_directory(line: Line, master: int | None) -> Iterator[str]:
    """Yield a sentence for a ``stats socket`` whose directory does not exist. HAProxy binds it before its chroot."""
    if line.keyword != "stats" or line.arguments[:1] != ["socket"]:
        return
    for address in line.arguments[1:2]:
        path = address.removeprefix("unix@")
        directory = os.path.dirname(path)
        if path.startswith("/") and not _may_exist(directory, master):
            yield f"stats socket {path}: there is no directory {directory}"


def _too_few_descriptors(in_global: list[Line], listeners: int, master: int | None) -> list[str]:
    """Return a sentence if the hard limit of open files is lower than what HAProxy's maxconn needs."""
    if master is None or any(
        line.words[:2] == ["no", "strict-limits"] or line.keyword in ("fd-hard-limit", "ulimit-n") for line in in_global
    ):
        return []
    given = [line.arguments[0] for line in in_global if line.keyword == "maxconn" and line.arguments]
    # HAProxy's master counts with 100 for itself. Without a maxconn, HAProxy takes one that the limit allows.
    maxconn = max(int(given[-1]) if given and given[-1].isdecimal() else 0, 100)
    needed = 2 * maxconn + listeners + _OF_ITS_OWN
    allowed = _hard_limit(master)
    if allowed is None or needed <= allowed:
        return []
    need = f"HAProxy needs at least {needed} open files (maxconn {maxconn}, {listeners} binds)"
    limit = f"RLIMIT_NOFILE allows {allowed} to process {master}"
    return [f"{need}, and {limit}; {_FAILS}; lower maxconn, or raise LimitNOFILE= and restart"]


def _hard_limit(pid: int) -> int | None:
    """Return the number of open files that a process cannot go beyond; None if it can, or that cannot be told."""
    try:
        allowed = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        with open(f"/proc/{pid}/status") as status:
            capabilities = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    except (OSError, StopIteration):
        return None
    return None if allowed == resource.RLIM_INFINITY or capabilities & _SYS_RESOURCE else allowed


def _may_exist(directory: str, master: int | None) -> bool:
    """Return False if it is certain that there is no such directory for HAProxy."""
    if master is None and directory.startswith(_MADE_FOR_A_START):
        return True
    # The master may have a root or mounts of its own. An absolute symbolic link leads out of them.
    seen = [directory] if master is None else [directory, f"/proc/{master}/root{directory}"]
    for path in seen:
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return True  # HAProxy may be allowed to see it
        return True
    return False
