"""The state that outlives this process: the journal, the state file, and the keeper's copies."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

import msgspec

from multibinder.binder import events, records
from multibinder.binder.inherit import RECORDS, Inheritance
from multibinder.binder.keeper import Keeper
from multibinder.binder.listener import Listener, name_of_cookie
from multibinder.binder.recover import recover
from multibinder.wire.addresses import Address

#: A journal grows with each bind and release. One with this many bytes more than its listeners need is replaced.
_SPARE_BYTES = 1024 * 1024
_BYTES_PER_LISTENER = 512
#: A search for the holder of a missing socket, which blocks the loop, is not repeated sooner.
_SEARCH_EVERY_S = 1.0


class HeldListeners(Protocol):
    """The listeners that the binder holds (``ListenerStore``)."""

    def __len__(self) -> int: ...
    def listeners(self) -> Sequence[Listener]: ...


class DurableState:
    """Write the records of listeners, and recover listeners that the binder has lost.

    ``state_file`` is the path of the state file, None for none. ``held`` returns the store, which is constructed with
    this object and therefore later. ``upgraded``: this process runs on after an upgrade; it was not started anew.

    Until ``begin``, the journal is in memory alone, and the state file is what the last binder wrote.
    """

    def __init__(
        self,
        state_file: str | None,
        inherited: Inheritance,
        keeper: Keeper | None,
        held: Callable[[], HeldListeners],
        *,
        upgraded: bool,
    ) -> None:
        self._state_file = state_file
        self._keeper = keeper
        self._held = held
        self._search_again_at = 0.0
        recorded = records.read_file(state_file) if state_file is not None else records.Recorded()
        self._missing = {cookie: record for cookie, record in recorded.records.items() if not record.released}
        self._header = _next_header(inherited.header or recorded.header, upgraded=upgraded)
        self._inherited_names = inherited.kept_names
        self._journal_number = _highest_number(inherited.record_names)
        self._journal = records.Journal((), None, self._header)

    @property
    def starts(self) -> int:
        """Return the number of starts of the binder since boot. An upgrade is not a start."""
        return self._header.starts

    @property
    def upgrades(self) -> int:
        """Return the number of upgrades of the binder since boot."""
        return self._header.upgrades

    @property
    def had_policy(self) -> bool:
        """Return whether a policy was in force when the journal was last begun, by this process or the one before."""
        return self._header.policy

    def recover_all(self) -> Iterator[tuple[records.Record, socket.socket]]:
        """Recover listeners recorded in the state file from processes that still hold them. The caller owns them."""
        for listener in self._held().listeners():
            self._missing.pop(listener.cookie, None)
        yield from self._recover(list(self._missing.values()))

    def recover(self, address: Address) -> tuple[records.Record, socket.socket] | None:
        """Recover the listener of one address that is in use. The caller owns the socket. None if that fails."""
        missing = [record for record in self._missing.values() if record.address == str(address)]
        if not missing or time.monotonic() < self._search_again_at:
            return None
        self._search_again_at = time.monotonic() + _SEARCH_EVERY_S
        return next(self._recover(missing), None)

    def begin(self, *, policy: bool) -> None:
        """Begin the journal of this process when the inherited and recovered listeners are in the store."""
        self._header = msgspec.structs.replace(self._header, policy=policy)
        kept = {listener.kept_name for listener in self._held().listeners()}
        self._replace_journal([name for name in self._inherited_names if name not in kept])

    def note_policy(self, in_force: bool) -> None:
        """Record whether a policy is in force now. If it is, a missing policy file is an error for the next process."""
        if self._header.policy != in_force:
            self._header = msgspec.structs.replace(self._header, policy=in_force)
            self._replace_journal([self._journal_name])

    def write(self, changed: Sequence[records.Record]) -> None:
        """Append records that are new or have changed. The keeper forgets listeners that are released."""
        if self._journal.size > _SPARE_BYTES + _BYTES_PER_LISTENER * len(self._held()):
            self._replace_journal([self._journal_name])
        # Only then: the store still has the listener whose release it writes, so a later new journal would revive it.
        self._journal.append(changed)
        if self._keeper is not None:
            self._keeper.forget([name_of_cookie(record.cookie) for record in changed if record.released])

    def detach_journal(self) -> tuple[str, int]:
        """Bring the journal up to date, end it, and return its name and descriptor, which the caller owns."""
        self._journal.append([listener.record() for listener in self._held().listeners()])
        return self._journal_name, self._journal.detach()

    def remove_file_if_useless(self) -> None:
        """Remove the state file if no listener is left that could be recovered."""
        if not len(self._held()) and self._state_file is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._state_file)

    @property
    def _journal_name(self) -> str:
        return f"{RECORDS}-{self._journal_number}"

    def _recover(self, missing: Sequence[records.Record]) -> Iterator[tuple[records.Record, socket.socket]]:
        for record, sock in recover(missing):
            del self._missing[record.cookie]
            events.info("recovered", address=record.address, owners=",".join(record.claims))
            yield record, sock

    def _replace_journal(self, outdated: Sequence[str]) -> None:
        """Start a new journal from the current state. The keeper receives it before it forgets ``outdated``."""
        listeners = self._held().listeners()
        current = [*(listener.record() for listener in listeners), *self._missing.values()]
        # If this raises, the old journal goes on. Closed too early, its number would be another descriptor's.
        previous, self._journal = self._journal, records.Journal(current, self._state_file, self._header)
        previous.close()
        self._journal_number += 1
        if (keeper := self._keeper) is None:
            return

        name = self._journal_name

        def confirm(kept: Collection[str]) -> None:
            for listener in listeners:
                listener.note_kept(kept)
            if name in kept:
                keeper.forget(outdated)

        journal = (name, self._journal.memfd)
        keeper.keep([journal, *(listener.for_keeper() for listener in listeners)], confirm)


def _next_header(previous: records.Header | None, *, upgraded: bool) -> records.Header:
    if previous is None:
        return records.Header(records.FORMAT, records.boot_id())
    return msgspec.structs.replace(
        previous, starts=previous.starts + (not upgraded), upgrades=previous.upgrades + upgraded
    )


def _highest_number(journal_names: Sequence[str]) -> int:
    numbers = [name.partition("-")[2] for name in journal_names]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)
