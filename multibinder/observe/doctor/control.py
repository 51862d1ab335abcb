"""Who can reach the control socket, and who could put another one in its place."""

from __future__ import annotations

import stat
from collections.abc import Iterator

from multibinder.observe.doctor.facts import Facts
from multibinder.observe.doctor.finding import Finding

_OTHERS_WRITE = stat.S_IWOTH


def control_socket(facts: Facts) -> Iterator[Finding]:
    """connect(2) on a Unix socket needs write permission on its file, and search permission on the way there."""
    if not facts.control:
        return
    sock, *directories = facts.control
    shut = any(not place.mode & stat.S_IXOTH for place in directories)
    if sock.mode & _OTHERS_WRITE and not shut:
        yield Finding(
            "control-socket",
            "problem",
            f"every user can connect to the control socket (mode {sock.mode & 0o7777:04o})",
            sock.path,
            "Who connects may bind any port with the binder's rights, take a copy of every listener, and close them",
            f"chmod o-rwx {sock.path}",
        )
    for place in directories:
        sticky = bool(place.mode & stat.S_ISVTX)
        # In a sticky directory only an owner replaces what is there: it matters for the socket, which may be missing.
        if not place.mode & _OTHERS_WRITE or (sticky and place is not directories[0]):
            continue
        yield Finding(
            "control-socket",
            "warning" if sticky else "problem",
            f"every user can {'make' if sticky else 'replace'} files in {place.path} (mode {place.mode & 0o7777:04o})",
            sock.path,
            "While the binder is down, anybody can put a socket of his own there and be asked for the ports"
            if sticky
            else "Anybody can put a socket of his own in place of the binder's, and be asked for the ports",
            f"chmod o-w {place.path}" if not sticky else "multibinder serve --socket /run/multibinder/control.sock",
        )
    owners = {place.user for place in directories} - {0, sock.user}
    if owners:
        place = next(place for place in directories if place.user in owners)
        yield Finding(
            "control-socket",
            "warning",
            f"{place.path} belongs to user {place.user}, the control socket to user {sock.user}",
            sock.path,
            "The owner of a directory can put another socket in place of the binder's",
            f"chown {sock.user} {place.path}",
        )
