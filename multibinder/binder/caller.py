"""The process at the other end of a connection, as the kernel identifies it."""

from __future__ import annotations

import functools
import os
import select
import socket
import time

from multibinder.binder.intake import Intake
from multibinder.binder.owner import GUEST_UID
from multibinder.kernel import pidfd, process
from multibinder.kernel.peer_groups import peer_groups
from multibinder.kernel.peer_namespaces import SHORTAGES, is_in_our_pid_namespace
from multibinder.kernel.socket_options import cookie_of, peer_credentials, peer_pidfd


class Caller:
    """The process that called connect(2), as it was then (SO_PEERCRED, unix(7)). The client cannot forge any of it.

    A client of another PID namespace than ours is a guest, whose uid and gid are GUEST_UID. Its own ones tell nothing:
    root of a container that has no user namespace is uid 0 for us, and becomes whichever user it likes by setuid(2).
    Nobody can leave a PID namespace. (A user namespace cannot be relied on: a process of any user can make one.)

    ``sock`` stays its owner's. It must be open when ``gids`` and ``unit`` are read for the first time.

    Raises OSError if the connection is gone, or if there are too few descriptors to tell whether the client is a guest.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._accepted_at = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.pid, self._kernel_uid, gid = peer_credentials(sock)
        self.is_guest = not self._is_in_our_pid_namespace()
        self.uid, self.gid = (GUEST_UID, GUEST_UID) if self.is_guest else (self._kernel_uid, gid)
        #: The descriptors that it was permitted to send.
        self.intake = Intake(sock)

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
        """Return the effective and the supplementary groups. A guest has GUEST_UID alone."""
        if self.is_guest:
            return frozenset([GUEST_UID])
        return peer_groups(self._socket) | {self.gid}

    @functools.cached_property
    def unit(self) -> str:
        """Return the systemd unit that the process runs in; empty if that is not certain."""
        try:
            descriptor = self._identify(required=True)
        except OSError:
            return ""  # it has ended
        try:
            unit = process.unit_of(self.pid)
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

    def _is_in_our_pid_namespace(self) -> bool:
        """Return False also for a client that has ended: another process may have inherited its connection."""
        if self.pid == 0:
            return False
        try:
            descriptor = self._identify(required=False)
        except OSError as error:
            if error.errno in SHORTAGES:
                raise  # to take it for a guest would give its claims to another user
            return False
        try:
            return is_in_our_pid_namespace(self.pid, descriptor)
        finally:
            os.close(descriptor)

    def _identify(self, *, required: bool) -> int:
        """Return a pidfd of the client, which the caller owns. Raises OSError if it has ended.

        The PID may belong to another process by now. Linux 6.5 and later identify the process (SO_PEERPIDFD). On an
        older kernel, the process that has the PID is taken for it if the uid is the same and it started before the
        connection was accepted. If /proc does not show it to our user (hidepid), that is an error if it is
        ``required``.
        """
        if (descriptor := peer_pidfd(self._socket)) is not None:
            return descriptor
        descriptor = os.pidfd_open(self.pid)
        try:
            started = process.stat_of(self.pid).start_ticks / process.TICKS_PER_S
            is_plausible = process.uid_of(self.pid) == self._kernel_uid and started < self._accepted_at
        except OSError:
            is_plausible = not required
        if not is_plausible:
            os.close(descriptor)
            raise ProcessLookupError(f"pid {self.pid} is another process")
        return descriptor
