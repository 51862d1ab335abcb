"""Recovery of sockets from the processes that still hold them, after the binder and its keeper were killed.

A socket lives as long as any process (HAProxy, a worker) has it open. The state file lists the sockets that were ours.
The inode in a record finds the holder in /proc, and SO_COOKIE proves that its socket is the recorded one.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Mapping

from multibinder.binder import events
from multibinder.binder.listener import Listener
from multibinder.binder.recorded_sockets import describes
from multibinder.binder.records import Record
from multibinder.kernel.descriptors import scan
from multibinder.kernel.pidfd import duplicate_socket
from multibinder.wire import kinds
from multibinder.wire.addresses import Address

#: A log line names so many addresses.
_NAMED = 5


def recover(records: Iterable[Record]) -> list[tuple[Record, socket.socket]]:
    """Return copies of the recorded sockets that other processes hold. The caller owns them.

    A socket that exists and cannot be copied is logged. A copy needs PTRACE_MODE_ATTACH_REALCREDS for the holder
    (pidfd_getfd(2)): the same user, or CAP_SYS_PTRACE, and then CAP_DAC_READ_SEARCH to find it in /proc/PID/fd.
    """
    missing = {record.inode: record for record in records if not record.released and record.inode}
    if not missing:
        return []
    recovered: list[tuple[Record, socket.socket]] = []
    refused: set[int] = set()
    held = [(holder, *socket_) for holder in scan(missing, {os.getpid()}).processes for socket_ in holder.sockets]
    for holder, descriptor, inode in held:
        record = missing.get(inode)
        if record is None:
            continue  # recovered from another holder
        try:
            sock = duplicate_socket(holder.pid, descriptor, holder.threads[0])
        except PermissionError:
            refused.add(inode)
            continue
        except OSError:
            continue  # the holder has closed it, or ended
        if describes(record, sock):
            recovered.append((record, sock))
            del missing[inode]
        else:
            sock.close()
    # A socket that exists has a holder. If the scan found none, the binder may not look into the holder.
    for inode in (refused | _existing_inodes()) & missing.keys():
        events.error(
            "cannot-recover",
            address=missing[inode].address,
            why="its holder may not be looked into: the binder needs the same user, or CAP_SYS_PTRACE and "
            "CAP_DAC_READ_SEARCH, and no seccomp filter against pidfd_getfd (the drop-in ptrace.conf has all three)",
        )
    return recovered


def without_gone(missing: Mapping[int, Record], held: Iterable[Listener]) -> dict[int, Record]:
    """Return the records of ``missing`` without those whose sockets exist no more, which are logged.

    A record whose address has a listener again is not logged. One of another network namespace stays: the sockets there
    are not listed.
    """
    inodes, addresses = _existing_inodes(), {str(listener.address) for listener in held}
    listed = {cookie: record.inode for cookie, record in missing.items() if record.inode and _is_listed(record)}
    gone = {cookie for cookie, inode in listed.items() if inode not in inodes}
    if lost := [missing[cookie].address for cookie in gone if missing[cookie].address not in addresses]:
        events.warning(
            "not-recovered",
            count=len(lost),
            addresses=",".join(sorted(lost)[:_NAMED]) + (",..." if len(lost) > _NAMED else ""),
            why="neither a keeper nor another process has these listeners of an earlier binder any more; their ports "
            "are closed until a client binds them",
        )
    return {cookie: record for cookie, record in missing.items() if cookie not in gone}


def _is_listed(record: Record) -> bool:
    """Return whether the kernel's lists have the socket of a record, if it exists: those of this network namespace."""
    return not record.netns and bool(record.address) and kinds.of_address(Address.parse(record.address)).is_listed


def _existing_inodes() -> set[int]:
    """Return the inodes of all sockets in this network namespace that clients can reach."""
    found: set[int] = set()
    for kind in kinds.KINDS:
        with contextlib.suppress(OSError):
            found |= kind.ready_inodes()
    return found
