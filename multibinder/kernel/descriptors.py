"""Scan /proc for the processes that have certain sockets open."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import NamedTuple

from multibinder.kernel.process import is_program, stat_or_none
from multibinder.kernel.threads import tables_of

_EPOLL = "anon_inode:[eventpoll]"


class ProcessSockets(NamedTuple):
    """One table of descriptors of a process. A process whose threads have tables of their own has several.

    ``threads`` use the table; /proc/PID/task/THREAD/fd of the first of them shows it. ``sockets`` has the
    (descriptor, inode) of each wanted socket in it, ``epolls`` its epoll descriptors.
    """

    pid: int
    threads: tuple[int, ...]
    sockets: list[tuple[int, int]]
    epolls: list[int]


class Scan(NamedTuple):
    """The result of ``scan``.

    ``processes`` are the tables with at least one of the sockets; ``unreadable`` are the PIDs whose descriptors could
    not be read. ``complete`` is False if there is such a PID, or if /proc hides processes (hidepid=, proc(5)). The scan
    cannot detect a process outside our PID namespace.
    """

    processes: list[ProcessSockets]
    unreadable: list[int]
    complete: bool


def count_own() -> int:
    """Return the number of descriptors that this process has open. It opens none: there may be none left.

    Since Linux 6.2 it is the size of /proc/self/fd (proc_pid_fd(5)); before, the directory has to be read. 0 if that
    fails.
    """
    try:
        return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd")) - 1
    except OSError:
        return 0


def scan(inodes: Collection[int], except_: Collection[int] = (), pids: Collection[int] | None = None) -> Scan:
    """Search every process except ``except_`` for the sockets with these inodes, or only the processes ``pids``.

    It takes about 4 microseconds for each descriptor on the host: 140 ms for 30,000. Reading a process needs
    PTRACE_MODE_READ (ptrace(2)): the same user, or CAP_SYS_PTRACE.
    """
    # Comparing whole links avoids parsing each of the 100,000 links that point to other files.
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    processes: list[ProcessSockets] = []
    unreadable: list[int] = []
    for pid in _all_pids() if pids is None else sorted(pids):
        if pid in except_:
            continue
        try:
            for threads in tables_of(pid):
                found = _sockets_of(pid, threads, wanted)
                if found.sockets:
                    processes.append(found)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended during the scan
        except OSError:  # permission denied, or this process has no free descriptor
            if is_program(pid):
                unreadable.append(pid)
    processes.sort()
    # With hidepid=, a user that may not read PID 1 does not see it either.
    return Scan(processes, unreadable, complete=not unreadable and os.path.exists("/proc/1"))


def sockets_of(pid: int) -> Iterator[ProcessSockets]:
    """Yield each table of descriptors of a process, with all its sockets. Raises OSError."""
    for threads in tables_of(pid):
        yield _sockets_of(pid, threads, None)


def has_socket(pid: int, thread: int, descriptor: int, inode: int) -> bool:
    """Return whether the table of this thread still has this socket under this number. It takes some microseconds."""
    try:
        return os.readlink(f"/proc/{pid}/task/{thread}/fd/{descriptor}") == f"socket:[{inode}]"
    except OSError:
        return False


def _all_pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _sockets_of(pid: int, threads: tuple[int, ...], wanted: dict[str, int] | None) -> ProcessSockets:
    found = ProcessSockets(pid, threads, [], [])
    try:
        directory = os.open(f"/proc/{pid}/task/{threads[0]}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return found  # the thread ended; others of the process may run
    except PermissionError:
        stat = stat_or_none(threads[0])
        if stat is not None and stat.state == "Z":
            return found  # a first thread that ended stays visible, without descriptors; only root may read its files
        raise
    try:
        for name in os.listdir(directory):
            try:
                link = os.readlink(name, dir_fd=directory)
            except FileNotFoundError:
                continue  # the process closed it during the scan
            if wanted is None:
                if link.startswith("socket:["):
                    found.sockets.append((int(name), int(link[8:-1])))
            elif link in wanted:
                found.sockets.append((int(name), wanted[link]))
            elif link == _EPOLL:
                found.epolls.append(int(name))
    finally:
        os.close(directory)
    return found
