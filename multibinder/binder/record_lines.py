"""Lines of records in an open file: each append is written whole or not at all, and a full disk stops no release."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from multibinder.binder import records
from multibinder.binder.records import Record


class RecordLines:
    """The lines of a journal in an open file. It owns the descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def append(self, text: bytes) -> None:
        """Append whole lines. Raises OSError, for example if the disk is full; then the file is as it was."""
        rest, at = memoryview(text), self.size
        try:
            while rest:
                written = os.pwrite(self.descriptor, rest, at)
                rest, at = rest[written:], at + written
        except OSError:
            # A part of a line at the end would damage the next line that is appended.
            with contextlib.suppress(OSError):
                os.ftruncate(self.descriptor, self.size)
            raise
        self.size = at

    def mark_released(self, released: Iterable[Record]) -> None:
        """Mark sockets as released in the lines that are there, which needs no further room. Raises OSError.

        Overwriting needs no room on ext4, xfs and tmpfs. A file system that copies on write (btrfs) may need some.
        """
        text = os.pread(self.descriptor, self.size, 0)
        for record in released:
            for offset, mark in records.mark_released(text, record):
                os.pwrite(self.descriptor, mark, offset)

    def close(self) -> None:
        os.close(self.descriptor)


def new_journal(text: bytes) -> RecordLines:
    """Return a journal that begins with these lines. Raises OSError; no descriptor is left open then."""
    journal = RecordLines(os.memfd_create("multibinder-records", os.MFD_CLOEXEC))
    try:
        journal.append(text)
    except OSError:
        journal.close()
        raise
    return journal
