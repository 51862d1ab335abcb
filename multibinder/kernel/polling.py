"""Find the sockets on which a process waits by poll(2) or select(2): what they wait for is in its memory.

Reading it needs PTRACE_MODE_ATTACH (ptrace(2)): the same user and, with Yama, an ancestor, or CAP_SYS_PTRACE.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from multibinder.kernel.descriptors import ProcessSockets

#: struct pollfd; POLLIN.
_POLLFD = struct.Struct("=ihh")
_POLLIN = 0x001
#: The most entries that are read: more descriptors than a process usually has.
_MOST = 65536
#: Numbers of system calls (asm/unistd.h): poll and ppoll; select and pselect6.
_POLL, _SELECT = {
    "x86_64": ((7, 271), (23, 270)),
    "aarch64": ((73,), (72,)),
    "riscv64": ((73,), (72,)),
    "loongarch64": ((73,), (72,)),
    "ppc64le": ((167, 281), (82, 142, 280)),
    "s390x": ((168, 302), (142, 301)),
}.get(os.uname().machine, ((), ()))


def polls_on(process: ProcessSockets) -> set[int]:
    """Return the inodes in ``process`` that its threads wait on by poll or select; empty if that cannot be read."""
    inode_of = dict(process.sockets)
    found: set[int] = set()
    for thread in process.threads:
        # proc_pid_syscall(5): the number of the call, its arguments, the stack pointer and the program counter.
        fields = _read(f"/proc/{process.pid}/task/{thread}/syscall").split()
        if len(fields) < 3 or not fields[0].isdigit():
            continue
        number, first, second = int(fields[0]), int(fields[1], 16), int(fields[2], 16)
        if number in _POLL:
            waits_for = _polled(process.pid, first, second)
        elif number in _SELECT:
            waits_for = _selected(process.pid, first, second)
        else:
            continue
        found |= {inode for descriptor, inode in inode_of.items() if waits_for(descriptor)}
    return found


def _polled(pid: int, address: int, count: int) -> Callable[[int], bool]:
    content = _memory(pid, address, min(count, _MOST) * _POLLFD.size)
    whole = content[: len(content) - len(content) % _POLLFD.size]
    wanted = {descriptor for descriptor, events, _ in _POLLFD.iter_unpack(whole) if events & _POLLIN}
    return wanted.__contains__


def _selected(pid: int, count: int, address: int) -> Callable[[int], bool]:
    """An fd_set is an array of longs, with the lowest bit of the first one for descriptor 0."""
    long = struct.calcsize("l")
    size = -(-min(count, _MOST) // (8 * long)) * long
    content = _memory(pid, address, size) if address else b""
    longs = struct.unpack(f"={len(content) // long}{'Q' if long == 8 else 'L'}", content)
    return lambda descriptor: (
        descriptor < count
        and any(word >> descriptor % (8 * long) & 1 for word in longs[descriptor // (8 * long) :][:1])
    )


def _memory(pid: int, address: int, size: int) -> bytes:
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            content = memory.read(size) or b""
    except (OSError, OverflowError, ValueError):
        return b""
    return content if len(content) == size else b""


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
