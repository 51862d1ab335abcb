"""Journals that the keeper may still have in place of the present one.

A memfd is shared with the keeper. So a release that is written here reaches it, also while it receives no messages.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from multibinder.binder import records
from multibinder.binder.record_lines import RecordLines
from multibinder.binder.records import Record

#: The oldest is the one that the keeper certainly has. Of those after it, the newest are kept.
_MOST = 8


class EarlierJournals:
    """Journals with their names, the oldest first. It owns them. ``inherited`` are those of earlier processes."""

    def __init__(self, inherited: Sequence[tuple[str, int]]) -> None:
        self._journals: dict[str, RecordLines] = {}
        for name, descriptor in inherited:
            self.add(name, RecordLines(descriptor))

    def add(self, name: str, journal: RecordLines) -> None:
        self.close([name])
        self._journals[name] = journal
        if len(self._journals) > _MOST:
            self.close(self.names()[1:2])

    def names(self) -> list[str]:
        return list(self._journals)

    def note_released(self, released: Sequence[Record]) -> None:
        """Record in each journal that these listeners are closed."""
        for journal in self._journals.values():
            try:
                journal.append(records.encode(released))
            except OSError:
                with contextlib.suppress(OSError, ValueError):
                    journal.mark_released(released)

    def close(self, names: Sequence[str]) -> None:
        """Close the journals of these names that are still here."""
        for name in names:
            if (journal := self._journals.pop(name, None)) is not None:
                journal.close()

    def detach(self) -> list[tuple[str, int]]:
        """Give the descriptors, with their names, to the caller."""
        detached = [(name, journal.descriptor) for name, journal in self._journals.items()]
        self._journals.clear()
        return detached
