"""Report permissions that let other users connect to the control socket or replace it."""

from __future__ import annotations

import stat
from collections.abc import Iterator

from multibinder.observe.doctor.facts import Facts
from multibinder.observe.doctor.finding import Finding

_OTHERS_WRITE = stat.S_IWOTH


def control_socket(facts: Facts) -> Iterator[Finding]:
    """Report loose permissions of the control socket and of the directories above it.

    connect(2) needs write permission on the file of a Unix socket, and search permission on every directory above.
    """
    if not facts.control:
        return
    sock, *directories = facts.control
    closed = any(not directory.mode & stat.S_IXOTH for directory in directories)
    if sock.mode & _OTHERS_WRITE and not closed:
        yield Finding(
            "control-socket",
            "problem",
            f"every user can connect to the control socket (mode {sock.mode & 0o7777:04o})",
            sock.path,
            "A user that connects may bind any port with the binder's rights, take a copy of every listener, and close "
            "them",
            f"chmod o-rwx {sock.path}",
        )
    for directory in directories:
        sticky = bool(directory.mode & stat.S_ISVTX)
        # In a sticky directory only the owner of a file can replace it, but every user can create a missing file. That
        # matters only in the directory of the socket itself.
        if not directory.mode & _OTHERS_WRITE or (sticky and directory is not directories[0]):
            continue
        yield Finding(
            "control-socket",
            "warning" if sticky else "problem",
            f"every user can {'create' if sticky else 'replace'} files in {directory.path} "
            f"(mode {directory.mode & 0o7777:04o})",
            sock.path,
            "While the binder is down, any user can put another socket there and be asked for the ports"
            if sticky
            else "Any user can put another socket in place of the binder's, and be asked for the ports",
            f"chmod o-w {directory.path}" if not sticky else "multibinder serve --socket /run/multibinder/control.sock",
        )
    owners = {directory.user for directory in directories} - {0, sock.user}
    if owners:
        directory = next(directory for directory in directories if directory.user in owners)
        yield Finding(
            "control-socket",
            "warning",
            f"{directory.path} belongs to user {directory.user}, the control socket to user {sock.user}",
            sock.path,
            "The owner of a directory can put another socket in place of the binder's",
            f"chown {sock.user} {directory.path}",
        )
