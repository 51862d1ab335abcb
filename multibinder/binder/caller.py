"""The process at the other end of a connection, as the kernel has it."""

from __future__ import annotations

import functools
import os
import socket
import time

from multibinder.kernel import pidfd, process
from multibinder.kernel.socket_options import peer_credentials, peer_groups, peer_pidfd


class Caller:
    """The process that called connect(2), as it was then (SO_PEERCRED, unix(7)). Nothing in it is the client's word.

    ``sock`` stays its owner's, and must be open while ``gids`` and ``unit`` are asked for the first time.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._came = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.pid, self.uid, self.gid = peer_credentials(sock)

    @functools.cached_property
    def gids(self) -> frozenset[int]:
        """The effective and the supplementary groups."""
        return peer_groups(self._socket) | {self.gid}

    @functools.cached_property
    def unit(self) -> str:
        """The systemd unit that the process runs in; empty where that is not certain.

        The PID may be another process's by now. Linux 6.5 tells which process it was (SO_PEERPIDFD). Before, the
        process that has the PID is believed if it has the same uid and started before the connection came.
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
            # What we read may be another process's if ours had ended by then.
            return "" if pidfd.has_ended(descriptor) else unit
        except OSError:
            return ""
        finally:
            os.close(descriptor)

    @property
    def command(self) -> str:
        """The name of the process that has the PID now, for log lines only: the process chose it. Safe to print."""
        return process.name_of(self.pid)

    def _is_plausible(self) -> bool:
        started = process.stat_of(self.pid).start_ticks / process.TICKS_PER_S
        return process.uid_of(self.pid) == self.uid and started < self._came
