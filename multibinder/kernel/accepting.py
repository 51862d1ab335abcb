"""Find the sockets on which a process waits for clients: by epoll, or in a thread that sleeps in accept(2)."""

from __future__ import annotations

import os
import re

from multibinder.kernel.descriptors import ProcessSockets

#: A line of /proc/PID/fdinfo/EPOLL (fs/eventpoll.c, ep_show_fdinfo()): the events, and the inode of the file.
_WATCHED = re.compile(rb"^tfd: *\d+ events: *([0-9a-f]+) .*? ino:([0-9a-f]+) ", re.MULTILINE)
_EPOLLIN = 0x001
#: accept and accept4 by their system call numbers (asm/unistd.h).
_ACCEPT = {
    "x86_64": (43, 288),
    "aarch64": (202, 242),
    "riscv64": (202, 242),
    "loongarch64": (202, 242),
    "ppc64le": (330, 344),
    "s390x": (364,),
}.get(os.uname().machine, ())
#: The kernel functions that such a thread sleeps in (net/ipv4/inet_connection_sock.c, and for Unix sockets
#: net/core/datagram.c); the second one appears unless the compiler inlined it.
_SLEEPS_IN = ("inet_csk_accept", "inet_csk_wait_for_connect", "__skb_wait_for_more_packets")


def accepts_on(process: ProcessSockets) -> set[int]:
    """Return the inodes in ``process`` that its threads wait on. Waiting by poll, select or io_uring is not visible.

    The result is empty if this user may not read the details of the process.
    """
    inode_of = dict(process.sockets)
    wanted = set(inode_of.values())
    found: set[int] = set()
    for epoll in process.epolls:
        if found >= wanted:
            return found
        found |= _watched(process, epoll) & wanted
    if found < wanted:
        found |= _slept_on(process, inode_of)
    return found


def _watched(process: ProcessSockets, epoll: int) -> set[int]:
    text = _read(f"/proc/{process.pid}/task/{process.threads[0]}/fdinfo/{epoll}")
    return {int(inode, 16) for events, inode in _WATCHED.findall(text) if int(events, 16) & _EPOLLIN}


def _slept_on(process: ProcessSockets, inode_of: dict[int, int]) -> set[int]:
    found: set[int] = set()
    pid = process.pid
    only_inode = next(iter(inode_of.values())) if len(set(inode_of.values())) == 1 else None
    for thread in process.threads:
        # proc_pid_syscall(5): the number of the call, then its arguments. The first one of accept is the descriptor.
        number, _, arguments = _read(f"/proc/{pid}/task/{thread}/syscall").partition(b" ")
        if number.isdigit():
            if int(number) in _ACCEPT:
                inode = inode_of.get(int(arguments.split()[0], 16))
                found |= {inode} if inode is not None else set()
        elif only_inode is not None and not number and _sleeps_in(pid, thread) in _SLEEPS_IN:
            found.add(only_inode)
    return found


def _sleeps_in(pid: int, thread: int) -> str:
    """Return the kernel function that a thread sleeps in.

    Reading it needs fewer rights than reading the system call. It does not show the descriptor, so it is enough only
    for a process that holds one socket.
    """
    return _read(f"/proc/{pid}/task/{thread}/wchan").decode(errors="replace")


def _read(path: str) -> bytes:
    """Return the content of a file; empty if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
