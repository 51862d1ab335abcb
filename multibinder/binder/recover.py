"""Sockets back from whoever holds them still: pidfd_getfd(2), when the binder's whole tree was killed.

As long as a holder (HAProxy, a worker) lives, so does the socket. The state file says which ones were ours; its inode
finds the holder in /proc, and SO_COOKIE proves that what we get is the very socket.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from multibinder.binder import events
from multibinder.binder.records import Record
from multibinder.kernel.descriptors import scan
from multibinder.kernel.pidfd import duplicate_socket
from multibinder.kernel.socket_options import cookie_of
from multibinder.wire.kinds import address_of


def recover(records: Iterable[Record]) -> list[tuple[Record, socket.socket]]:
    """The sockets of ``records`` that somebody holds; the caller owns them. What cannot be had is logged.

    Needs PTRACE_MODE_ATTACH_REALCREDS of each holder (pidfd_getfd(2)): the same user, or CAP_SYS_PTRACE, and to
    find them in /proc/PID/fd then CAP_DAC_READ_SEARCH.
    """
    wanted = {record.inode: record for record in records if not record.released and record.inode}
    if not wanted:
        return []
    found: list[tuple[Record, socket.socket]] = []
    refused: set[int] = set()
    held = [(holder.pid, *socket_) for holder in scan(wanted, {os.getpid()}).opened for socket_ in holder.sockets]
    for pid, descriptor, inode in held:
        record = wanted.get(inode)
        if record is None:
            continue  # another holder gave it already
        try:
            sock = duplicate_socket(pid, descriptor)
        except PermissionError:
            refused.add(inode)
            continue
        except OSError:
            continue  # it has just closed it, or ended
        if cookie_of(sock) == record.cookie and address_of(sock) is not None:
            found.append((record, sock))
            del wanted[inode]
        else:
            sock.close()
    # Where /proc shows nobody and the socket is there still, its holder is one that we may not look into.
    for inode in (refused | _listening()) & wanted.keys():
        events.error(
            "cannot-recover",
            address=wanted[inode].address,
            why="its holder may not be looked into: the binder needs the same user, or CAP_SYS_PTRACE and "
            "CAP_DAC_READ_SEARCH, and no seccomp filter against pidfd_getfd (the drop-in ptrace.conf has all three)",
        )
    return found


def _listening() -> set[int]:
    """The inode of each TCP socket in this network namespace: proc_pid_net(5)."""
    found: set[int] = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]
            found.update(int(line.split()[9]) for line in lines)
    return found
