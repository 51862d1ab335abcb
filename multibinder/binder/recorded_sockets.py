"""The records that this process found at its start, and the sockets that they describe."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from multibinder.binder import events
from multibinder.binder.key import Key
from multibinder.binder.records import Record
from multibinder.kernel.socket_options import cookie_of, inode_of
from multibinder.wire import kinds
from multibinder.wire.addresses import Address


class RecordedSockets:
    """The records of the inherited journal and of the state file, by cookie. Those of the journal go first."""

    def __init__(self, journal: Mapping[int, Record], state_file: Mapping[int, Record]) -> None:
        self._journal = journal
        self._state_file = state_file

    def of(self, sock: socket.socket) -> Record | None:
        """Return the record of a socket, or None if no record agrees with it."""
        cookie = cookie_of(sock)
        for record in (self._journal.get(cookie), self._state_file.get(cookie)):
            if record is None:
                continue
            if describes(record, sock):
                return record
            why = "the socket with this cookie has another inode or address"
            events.limited(events.warning, "record-mismatch", 0, address=record.address, cookie=cookie, why=why)
        return None

    def missing(self) -> dict[int, Record]:
        """Return the records of the state file that no record says to be released."""
        gone = {cookie for cookie, record in self._journal.items() if record.released}
        return {
            cookie: record for cookie, record in self._state_file.items() if not record.released and cookie not in gone
        }

    def released(self) -> dict[int, Record]:
        """Return the records of released listeners in the inherited journal."""
        return {cookie: record for cookie, record in self._journal.items() if record.released}


def describes(record: Record, sock: socket.socket) -> bool:
    """Return whether a record is about this socket: what both say of it must agree.

    The cookie alone is not enough, because a damaged record can have the cookie of another socket.
    """
    if record.cookie != cookie_of(sock) or (record.inode and record.inode != inode_of(sock)):
        return False
    kind = kinds.of_socket(sock)
    # The release of a listener changes its address.
    return kind is not None and (
        not record.address or kind.is_retired(sock) or kind.is_bound_to(sock, Address.parse(record.address))
    )


def has_key(record: Record, key: Key) -> bool:
    """Return whether a record is about the listener with this key."""
    return (record.address, record.netns, record.shard) == (str(key.address), key.netns, key.shard)
