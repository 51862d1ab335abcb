"""The state that outlives this process: the journal, the state file, and the keeper's copies."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

import msgspec

from multibinder.binder import events, records
from multibinder.binder.earlier_journals import EarlierJournals
from multibinder.binder.inherit import RECORDS, Inheritance
from multibinder.binder.keeper import Keeper
from multibinder.binder.kept_name import name_of_cookie
from multibinder.binder.key import Key
from multibinder.binder.listener import Listener
from multibinder.binder.owner import Owner, is_privileged
from multibinder.binder.record_lines import RecordLines, new_journal
from multibinder.binder.recorded_sockets import RecordedSockets, has_key
from multibinder.binder.records import Record
from multibinder.binder.recover import recover, without_gone
from multibinder.binder.state_file import StateFile

#: A journal grows with each bind and release. One with this many bytes more than its listeners need is replaced. With
#: 10,000 listeners that takes the loop for tens of milliseconds, so it happens once in 20 MB of changes.
_SPARE_BYTES = 256 * 1024
_BYTES_PER_LISTENER = 2048
#: A search for the holder of a missing socket, which blocks the loop, is not repeated sooner, nor before this many
#: times the time that it took.
_SEARCH_EVERY_S, _SEARCH_PAUSE = 1.0, 50


class HeldListeners(Protocol):
    """The listeners that the binder holds (``ListenerStore``)."""

    def __len__(self) -> int: ...
    def listeners(self) -> Sequence[Listener]: ...


class DurableState:
    """Write the records of listeners, and recover listeners that the binder has lost.

    ``state_file`` is the path of the state file, None for none. ``held`` returns the store, which is constructed with
    this object and therefore later. ``upgraded``: this process runs on after an upgrade; it was not started anew.

    Until ``begin`` there is no journal, and the state file is what the last binder wrote.
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
        self._keeper = keeper
        self._held = held
        self._search_again_at = 0.0
        recorded = records.read_file(state_file) if state_file is not None else records.Recorded()
        self._recorded = RecordedSockets(inherited.records, recorded.records)
        self._missing = self._recorded.missing()
        #: Released listeners whose removal the keeper may not have received yet.
        self._tombstones = {} if keeper is None else self._recorded.released()
        self._header = records.next_header(inherited.header or recorded.header, upgraded=upgraded)
        self._inherited_names = inherited.kept_names
        self._journal_number = _highest_number(inherited.record_names)
        self._journal: RecordLines | None = None
        self._earlier = EarlierJournals(inherited.journals)
        self._journal_is_behind = False
        self._file = None if state_file is None else StateFile(state_file, self._content)

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

    def record_of(self, sock: socket.socket) -> Record | None:
        """Return the record of an inherited socket, or None if there is none that agrees with the socket."""
        return self._recorded.of(sock)

    def recover_all(self) -> Iterator[tuple[Record, socket.socket]]:
        """Recover listeners recorded in the state file from processes that still hold them. The caller owns them."""
        for listener in self._held().listeners():
            self._missing.pop(listener.cookie, None)
        yield from self._recover(list(self._missing.values()))
        self._missing = without_gone(self._missing, self._held().listeners())

    def recover(self, key: Key, uid: int) -> tuple[Record, socket.socket] | None:
        """Recover the listener with this key, whose address is in use. The caller owns the socket. None if that fails.

        The search for its holder blocks the loop. So it is made only for a client that had the listener, or that is
        privileged, and takes a small share of the time.
        """
        having_key = (record for record in self._missing.values() if has_key(record, key))
        missing = [record for record in having_key if is_privileged(uid) or uid in _uids_of(record)]
        if not missing or time.monotonic() < self._search_again_at:
            return None
        began = time.monotonic()
        try:
            return next(self._recover(missing), None)
        finally:
            now = time.monotonic()
            self._search_again_at = now + max(_SEARCH_EVERY_S, (now - began) * _SEARCH_PAUSE)

    def begin(self, *, policy: bool) -> None:
        """Begin the journal of this process when the inherited and recovered listeners are in the store."""
        self._header = msgspec.structs.replace(self._header, policy=policy)
        if self._keeper is not None:
            # A removal that was on its way when the last process ended may never have arrived.
            self._keeper.forget([name_of_cookie(cookie) for cookie in self._tombstones])
        self._replace_or_complain()

    def note_policy(self, in_force: bool) -> None:
        """Record whether a policy is in force now. If it is, a missing policy file is an error for the next process."""
        if self._header.policy != in_force:
            self._header = msgspec.structs.replace(self._header, policy=in_force)
            self._replace_or_complain()

    def write(self, changed: Sequence[Record]) -> None:
        """Append records of listeners that are new or have changed. Raises OSError; then nothing is recorded."""
        text = records.encode(changed)
        self._append(text)
        if self._file is not None:
            self._file.append(text, ())

    def note(self, changed: Sequence[Record], *, forget: bool = True) -> None:
        """Append records that say that less is claimed now, or that a listener is released. The keeper forgets those.

        What cannot be appended is written at the next ``catch_up``. A release is marked in the present lines at once.
        """
        text = records.encode(changed)
        released = [record for record in changed if record.released]
        self._earlier.note_released(released)
        if self._keeper is not None and forget:
            self._tombstones |= {record.cookie: record for record in released}
        try:
            self._append(text)
        except OSError as error:
            self._fall_behind(error)
            if self._journal is not None:
                with contextlib.suppress(OSError, ValueError):
                    self._journal.mark_released(released)
        if self._file is not None:
            self._file.append(text, released)
        if self._keeper is not None and forget:
            self._keeper.forget([name_of_cookie(record.cookie) for record in released])

    def keep(self, listener: Listener) -> None:
        """Let the keeper store a listener, without waiting."""
        if self._keeper is not None:
            self._keeper.keep([listener.for_keeper()], listener.note_kept)

    def catch_up(self) -> None:
        """Write what could not be written before, and see that the state file is still there."""
        if self._journal_is_behind:
            self._replace_or_complain()
        if self._file is not None:
            self._file.check()
        if self._tombstones and self._keeper is not None:
            # A removal that was sent is in the keeper's queue, and stays there if this process ends.
            unsent = set(self._keeper.unremoved())
            self._tombstones = {
                cookie: record for cookie, record in self._tombstones.items() if name_of_cookie(cookie) in unsent
            }

    def detach_journal(self) -> list[tuple[str, int]]:
        """Bring the journal up to date, end it, and return its name and descriptor, which the caller owns.

        The list is empty if there is no journal because the kernel refused one.
        """
        try:
            if self._journal is None:
                self._journal = new_journal(self._content())
            else:
                self._journal.append(records.encode(listener.record() for listener in self._held().listeners()))
        except OSError:
            # A new one is shorter. If there is no room for it either, only numbers of handoffs are out of date.
            with contextlib.suppress(OSError):
                previous, self._journal = self._journal, new_journal(self._content())
                if previous is not None:
                    previous.close()
        if self._file is not None:
            self._file.close()
        present = [] if self._journal is None else [(self._journal_name, self._journal.descriptor)]
        return [*self._earlier.detach(), *present]

    def remove_file_if_useless(self) -> None:
        """Remove the state file if no listener is left that could be recovered."""
        if not len(self._held()) and self._file is not None:
            self._file.remove()

    @property
    def _journal_name(self) -> str:
        return f"{RECORDS}-{self._journal_number}"

    def _recover(self, missing: Sequence[Record]) -> Iterator[tuple[Record, socket.socket]]:
        for record, sock in recover(missing):
            del self._missing[record.cookie]
            events.info("recovered", address=record.address, owners=",".join(record.claims))
            yield record, sock

    def _append(self, text: bytes) -> None:
        """Append to the journal; one that is too long, or that has no room, is replaced first. Raises OSError."""
        journal = self._journal
        if journal is not None and journal.size <= _SPARE_BYTES + _BYTES_PER_LISTENER * len(self._held()):
            try:
                journal.append(text)
            except OSError:
                pass
            else:
                return
        self._replace_journal()
        # The store still has a listener whose release it writes, so the new journal has it too.
        assert self._journal is not None  # noqa: S101
        self._journal.append(text)

    def _replace_or_complain(self) -> None:
        try:
            self._replace_journal()
        except OSError as error:
            self._fall_behind(error)

    def _fall_behind(self, error: OSError) -> None:
        if not self._journal_is_behind:
            why = (
                f"{error.strerror}; until it can be, binds are refused, and releases are marked in the present journal"
            )
            events.error("journal-lost", why=why, done="it is tried again")
        self._journal_is_behind = True

    def _replace_journal(self) -> None:
        """Start a new journal from the current state. The keeper receives it before it forgets the one before.

        Raises OSError; then the old journal goes on.
        """
        listeners, content = self._held().listeners(), self._content()
        previous, self._journal = self._journal, new_journal(content)
        if previous is not None:
            self._earlier.add(self._journal_name, previous)
        earlier = self._earlier.names()
        if self._journal_is_behind:
            self._journal_is_behind = False
            events.info("journal-written", listeners=len(listeners))
        outdated = self._outdated_names()
        self._journal_number += 1
        if self._file is not None:
            self._file.write_anew(content)
        if (keeper := self._keeper) is None:
            self._earlier.close(earlier)
            return

        name = self._journal_name

        def confirm(kept: Collection[str]) -> None:
            for listener in listeners:
                listener.note_kept(kept)
            if name in kept:
                keeper.forget(outdated)
                self._earlier.close(earlier)

        journal = (name, self._journal.descriptor)
        keeper.keep([journal, *(listener.for_keeper() for listener in listeners)], confirm)

    def _outdated_names(self) -> list[str]:
        """Return the names at the keeper that a new journal makes useless."""
        kept = {listener.kept_name for listener in self._held().listeners()}
        outdated = [self._journal_name, *(name for name in self._inherited_names if name not in kept)]
        self._inherited_names = []
        return outdated

    def _content(self) -> bytes:
        """Return the lines of a journal with the current state."""
        held = (listener.record() for listener in self._held().listeners())
        return records.encode([self._header, *held, *self._tombstones.values(), *self._missing.values()])


def _uids_of(record: Record) -> set[int]:
    return {Owner.parse(claimant).uid for claimant in record.claims}


def _highest_number(journal_names: Sequence[str]) -> int:
    numbers = [name.partition("-")[2] for name in journal_names]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)
