"""Descriptors that a client sends: refused, but for those that it was permitted to send with its next request."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from multibinder.kernel.socket_options import accept_descriptors, close_without_lingering, refuse_descriptors
from multibinder.wire.errors import RemoteProtocolError


class Intake:
    """The descriptors that arrive on one connection. ``sock`` stays its owner's.

    Nothing is permitted at first. What arrives without a permission is closed at once; since Linux 6.16 the kernel
    refuses it to the sender (``refuse_descriptors``). A permission ends with the next request of the client, whatever
    that asks for.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._permitted = 0
        # Those of the request that is arriving, and those of the last one that has arrived.
        self._arriving: list[int] = []
        self._arrived: list[int] = []
        self._lost = self._arrived_lost = False

    @property
    def is_open(self) -> bool:
        """Return whether descriptors are permitted, and their request has not arrived yet."""
        return self._permitted > 0

    def permit(self, count: int) -> None:
        """Permit so many descriptors, with the next request."""
        self._permitted = count
        accept_descriptors(self._socket)

    def take_in(self, descriptors: Iterable[int]) -> None:
        """Take descriptors that have arrived. Raises RemoteProtocolError if these are more than permitted."""
        if not self._permitted:
            _close(descriptors)
            return
        self._arriving += descriptors
        if len(self._arriving) > self._permitted:
            came, permitted = len(self._arriving), self._permitted
            self.close()
            raise RemoteProtocolError(f"{permitted} descriptors were asked for, and {came} or more came")

    def note_lost(self) -> None:
        """Note that the kernel has dropped descriptors on their way to us."""
        self._lost = True

    def end_message(self) -> None:
        """Note that a request has arrived whole: the descriptors so far belong to it, and no more are permitted."""
        if not (self._permitted or self._arrived):
            return
        self.close_arrived()
        self._arrived, self._arriving = self._arriving, []
        self._arrived_lost, self._lost = self._lost, False
        self._end_permission()

    def take(self) -> tuple[list[int], bool]:
        """Return the descriptors that came with the last request, which the caller owns, and whether all came."""
        taken, self._arrived = self._arrived, []
        was_lost, self._arrived_lost = self._arrived_lost, False
        return taken, not was_lost

    def close_arrived(self) -> None:
        """Close the descriptors of the last request, which nobody has taken."""
        _close(self._arrived)
        self._arrived = []

    def close(self) -> None:
        """Close all descriptors, and end the permission."""
        self.close_arrived()
        _close(self._arriving)
        self._arriving = []
        self._end_permission()

    def _end_permission(self) -> None:
        if self._permitted:
            self._permitted = 0
            if self._socket.fileno() >= 0:
                refuse_descriptors(self._socket)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        close_without_lingering(descriptor)
