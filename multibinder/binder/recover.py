"""Recovery of sockets from the processes that still hold them, after the binder and its keeper were killed.

A socket lives as long as any process (HAProxy, a worker) has it open. The state file says which ones were ours. The
inode in a record finds the holder in /proc, and SO_COOKIE proves that its socket is the recorded one.
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
from multibinder.wire.address import address_of


def recover_from_holders(records: Iterable[Record]) -> list[tuple[Record, socket.socket]]:
    """Return copies of the recorded sockets that other processes hold. The caller owns them.

    A socket that exists and cannot be copied is logged. A copy needs PTRACE_MODE_ATTACH_REALCREDS for the holder
    (pidfd_getfd(2)): the same user, or CAP_SYS_PTRACE, and then CAP_DAC_READ_SEARCH to find it in /proc/PID/fd.
    """
    missing = {record.inode: record for record in records if not record.released and record.inode}
    if not missing:
        return []
    recovered: list[tuple[Record, socket.socket]] = []
    refused: set[int] = set()
    held = [(holder.pid, *socket_) for holder in scan(missing, {os.getpid()}).opened for socket_ in holder.sockets]
    for pid, descriptor, inode in held:
        record = missing.get(inode)
        if record is None:
            continue  # recovered from another holder
        try:
            sock = duplicate_socket(pid, descriptor)
        except PermissionError:
            refused.add(inode)
            continue
        except OSError:
            continue  # the holder has closed it, or ended
        if cookie_of(sock) == record.cookie and address_of(sock) is not None:
            recovered.append((record, sock))
            del missing[inode]
        else:
            sock.close()
    # If /proc shows no holder of a socket that exists, the binder may not look into its holder.
    for inode in (refused | _tcp_inodes()) & missing.keys():
        events.error(
            "cannot-recover",
            address=missing[inode].address,
            why="its holder may not be looked into: the binder needs the same user, or CAP_SYS_PTRACE and "
            "CAP_DAC_READ_SEARCH, and no seccomp filter against pidfd_getfd (the drop-in ptrace.conf has all three)",
        )
    return recovered


def _tcp_inodes() -> set[int]:
    """Return the inode of each TCP socket in this network namespace (proc_pid_net(5))."""
    found: set[int] = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]
            found.update(int(line.split()[9]) for line in lines)
    return found
