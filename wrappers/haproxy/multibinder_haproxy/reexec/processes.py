"""HAProxy's master as a process: who it is, and whether it is still there.

The master carries a POSIX record lock (fcntl_locking(2)) on ``RUNTIME/NAME/master.lock``. execve(2) keeps the lock, and
fork(2) does not pass it on, so HAProxy's workers do not have it. F_GETLK names the process that has it. The kernel
drops the lock when that process closes *any* descriptor of the file: only ``take_master_lock`` may open the file in the
process that becomes HAProxy.
"""

import fcntl
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

MASTER_LOCK_FILE = "master.lock"
#: The names that the master executes itself by: the launcher's, and that of version 0.1.
_PROGRAMS = (b"haproxy", b"multibinder-haproxy")
_FLOCK = "hhqqi"  # struct flock (fcntl_locking(2))
_ENDED = ("Z", "X")


def identity_of(pid: int) -> "dict[str, Any] | None":
    """Return the identity of a process, as ``records.Identity`` describes it; None if it is gone."""
    ticks = _start_ticks(pid)
    if ticks is None:
        return None
    return {"boot": _boot(), "machine": _machine(), "pid": pid, "start_ticks": ticks}


def is_alive(identity: "Mapping[str, Any] | None") -> bool:
    """Return whether the very process lives: on this machine, since this boot, and not as a zombie."""
    return identity is not None and identity_of(identity["pid"]) == dict(identity)


def take_master_lock(directory: str) -> int:
    """Take the lock of the instance's master for this process, and return its descriptor, which HAProxy inherits.

    Call it once, in the process that becomes HAProxy. Raises BlockingIOError if another process has the lock, OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    # The low numbers are left to HAProxy. The first descriptor is closed before the lock is taken.
    descriptor = _move_up(os.open(os.path.join(directory, MASTER_LOCK_FILE), flags, 0o600))
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    os.set_inheritable(descriptor, True)
    return descriptor


def carries_master_lock(directory: str, descriptor: int) -> bool:
    """Return whether ``descriptor`` of this process is the instance's lock file.

    It is not if the file, or the directory, was removed and made again.
    """
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(os.path.join(directory, MASTER_LOCK_FILE)))
    except OSError:
        return False


def master_of(directory: str) -> "int | None":
    """Return the PID of the master of the instance in ``directory``; None if there is none.

    If the lock file is missing (the runtime directory was removed; an earlier version has none), the master is looked
    for among all processes. Do not call this in the master itself.
    """
    try:
        descriptor = os.open(os.path.join(directory, MASTER_LOCK_FILE), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return _search(directory)
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    finally:
        os.close(descriptor)
    if kind != fcntl.F_UNLCK:
        return int(pid)
    return None


def _search(directory: str) -> "int | None":
    """Return the PID of the HAProxy whose command line names a file of the instance, and whose parent is none."""
    found: dict[int, int] = {}
    prefix = os.fsencode(os.path.join(directory, ""))
    for entry in _processes():
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            if os.path.basename(words[0]) not in _PROGRAMS or not any(word.startswith(prefix) for word in words[1:]):
                continue
            status = _status(entry)
        except OSError:
            continue
        # A process of a container has its PIDs in two namespaces or more (proc_pid_status(5)).
        if status is not None and len(status["NSpid"]) == 1 and status["State"][0] not in _ENDED:
            found[entry] = int(status["PPid"][0])
    return next((pid for pid, parent in sorted(found.items()) if parent not in found), None)


def _processes() -> "Iterator[int]":
    own = os.getpid()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != own:
            yield int(name)


def _status(pid: int) -> "dict[str, list[str]] | None":
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        fields = {key: value.split() for key, _, value in (line.partition(":") for line in file)}
    return fields if {"State", "PPid", "NSpid"} <= fields.keys() else None


def _start_ticks(pid: int) -> "int | None":
    """Return when a process started, in clock ticks since boot; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The second field, the name in parentheses, may contain anything (proc_pid_stat(5)).
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if len(fields) > 19 and fields[0] not in _ENDED else None


def _boot() -> str:
    return _first_line("/proc/sys/kernel/random/boot_id")


def _machine() -> str:
    return _first_line("/etc/machine-id")


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


def _move_up(descriptor: int) -> int:
    """Give a descriptor a number that HAProxy's master and its listeners do not need, and close the old number."""
    for lowest in (400, 200, 64):
        try:
            moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)
        except OSError:  # EINVAL: above RLIMIT_NOFILE
            continue
        os.close(descriptor)
        return moved
    return descriptor
