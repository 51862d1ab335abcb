"""The process at the other end of a connection, as the kernel identifies it."""

from __future__ import annotations

import functools
import os
import select
import socket
import time

from multibinder.kernel import pidfd, process
from multibinder.kernel.peer_groups import peer_groups
from multibinder.kernel.socket_options import cookie_of, peer_credentials, peer_pidfd


class Caller:
    """The process that called connect(2), as it was then (SO_PEERCRED, unix(7)). The client cannot forge any of it.

    ``sock`` stays its owner's. It must be open when ``gids`` and ``unit`` are read for the first time.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._accepted_at = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.pid, self.uid, self.gid = peer_credentials(sock)

    @functools.cached_property
    def connection(self) -> int:
        """Return the number of the connection (SO_COOKIE). It stays the same when another process inherits it."""
        return cookie_of(self._socket)

    def has_gone(self) -> bool:
        """Return whether the client has closed its end. One that only sends no more still waits for its answers."""
        if self._socket.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._socket, 0)  # POLLHUP is always reported: both directions are shut down
        return bool(poll.poll(0))

    @functools.cached_property
    def gids(self) -> frozenset[int]:
        """Return the effective and the supplementary groups."""
        return peer_groups(self._socket) | {self.gid}

    @functools.cached_property
    def unit(self) -> str:
        """Return the systemd unit that the process runs in; empty if that is not certain.

        The PID may belong to another process by now. Linux 6.5 and later identify the process (SO_PEERPIDFD). On an
        older kernel, the process that has the PID is taken for it if the uid is the same and it started before the
        connection was accepted.
        """
        try:
            descriptor = peer_pidfd(self._socket)
            certain = descriptor is not None
            if descriptor is None:
                descriptor = os.pidfd_open(self.pid)
        except OSError:
            return ""  # it has ended
        try:
            unit = process.unit_of(self.pid)
            if not certain and not self._is_plausible():
                return ""
            # If the process has ended, another one may have its PID, and the unit may be that one's.
            return "" if pidfd.has_ended(descriptor) else unit
        except OSError:
            return ""
        finally:
            os.close(descriptor)

    @property
    def command(self) -> str:
        """Return the name of the process that has the PID now. The process chose it, so it is for log lines only.

        It is safe to print.
        """
        return process.name_of(self.pid)

    def _is_plausible(self) -> bool:
        started = process.stat_of(self.pid).start_ticks / process.TICKS_PER_S
        return process.uid_of(self.pid) == self.uid and started < self._accepted_at
