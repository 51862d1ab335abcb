"""Who is at the other end of a connection, as the kernel has it."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import socket
import struct
import time

from multibinder.observe.holders import printable

_UCRED = struct.Struct("=iII")
#: asm-generic/socket.h; Python's socket module has no names for them.
_SO_PEERGROUPS, _SO_PEERPIDFD = 59, 77
_GID_BYTES = 4
#: sysconf(_SC_CLK_TCK): the unit of a process's start time in proc_pid_stat(5).
_TICKS = os.sysconf("SC_CLK_TCK")


class Caller:
    """The process that called connect(2), as it was then (SO_PEERCRED, unix(7)): nothing the client says is in it.

    ``sock`` stays the caller's, and must be open while ``gids`` and ``unit`` are asked for the first time.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._came = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.pid, self.uid, self.gid = _UCRED.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        )

    @functools.cached_property
    def gids(self) -> frozenset[int]:
        """The effective and the supplementary groups."""
        return frozenset([self.gid, *_supplementary_groups(self._socket)])

    @functools.cached_property
    def unit(self) -> str:
        """The systemd unit that it runs in; empty where that cannot be told for certain.

        Its PID may be another process's by now. Linux 6.5 tells which process it was (SO_PEERPIDFD); before, the one
        that has the PID is believed if it has the same uid and was there before the connection came.
        """
        try:
            pidfd = int.from_bytes(self._socket.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4), "little")
            certain = True
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                return ""  # it has ended
            certain = False
        try:
            if not certain:
                pidfd = os.pidfd_open(self.pid)
        except OSError:
            return ""
        try:
            with open(f"/proc/{self.pid}/cgroup", errors="replace") as file:
                unit = unit_of(file.read())
            if not certain and not self._is_plausible():
                return ""
            # Readable once it has ended (pidfd_open(2)): then what we read may be a stranger's.
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            return "" if ended.poll(0) else unit
        except OSError:
            return ""
        finally:
            os.close(pidfd)

    @property
    def command(self) -> str:
        """The name of whatever has its PID now: for a log line, and for nothing that matters. It chose it itself, so
        what a terminal could obey is not in it."""
        with contextlib.suppress(OSError), open(f"/proc/{self.pid}/comm", errors="replace") as file:
            return printable(file.read().rstrip("\n")) or "?"
        return "?"

    def _is_plausible(self) -> bool:
        with open(f"/proc/{self.pid}/stat", errors="replace") as file:
            # The command's name, in parentheses, may have anything in it.
            started = int(file.read().rpartition(")")[2].split()[19]) / _TICKS
        return os.stat(f"/proc/{self.pid}").st_uid == self.uid and started < self._came


def unit_of(cgroups: str) -> str:
    """The unit in the text of a /proc/PID/cgroup (cgroups(7)); empty if there is none.

    The first part of the path that is no slice: what lies below it is the unit's own to name (systemd.slice(5)).
    """
    for line in cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "name=systemd"):
            continue
        for part in path.split("/"):
            # A name that would collide with a file of the kernel's has an underscore in front.
            name = part.removeprefix("_")
            if name and not name.endswith(".slice"):
                return name if name.endswith((".service", ".scope")) else ""
    return ""


def _supplementary_groups(sock: socket.socket) -> list[int]:
    try:
        packed = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    except OSError as error:
        if error.errno != errno.ERANGE:
            return []
        packed = _many_groups(sock)
    return [number for (number,) in struct.iter_unpack("=I", packed)]


def _many_groups(sock: socket.socket) -> bytes:
    """Of a process in more than 256 groups: Python's getsockopt() has room for 1,024 bytes."""
    import ctypes

    room = ctypes.create_string_buffer(65536 * _GID_BYTES)  # NGROUPS_MAX, credentials(7)
    size = ctypes.c_uint32(len(room))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS, room, ctypes.byref(size)):
        return b""
    return room.raw[: size.value]
