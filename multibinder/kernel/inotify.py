"""Notice changes of directories (inotify(7)), for which Python has no names."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x40, 0x80, 0x100, 0x200
IN_DELETE_SELF, IN_MOVE_SELF, IN_UNMOUNT, IN_Q_OVERFLOW, IN_IGNORED = 0x400, 0x800, 0x2000, 0x4000, 0x8000
_IN_ONLYDIR = 0x01000000
_ENTRIES = IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
#: The directory itself is not at its path any more.
GONE = IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT | IN_IGNORED
_EVENT = struct.Struct("=iIII")
_BUFFER = 1 << 16

# Loaded at import, because loading needs a descriptor, and a running daemon may have none left.
_libc = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """A change: the number of the watch, its bits, and the name in the directory.

    The number is -1 if events were lost.
    """

    watch: int
    bits: int
    name: str


class Inotify:
    """Watches directories for entries that appear and disappear. Raises OSError if there is no descriptor for it."""

    def __init__(self) -> None:
        self._descriptor = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))

    def fileno(self) -> int:
        return self._descriptor

    def watch(self, directory: str) -> int:
        """Watch a directory, and return the number of the watch. A directory has one, however often it is watched.

        Needs the right to read the directory. Raises OSError.
        """
        return _checked(
            _libc.inotify_add_watch(self._descriptor, os.fsencode(directory), _ENTRIES | GONE | _IN_ONLYDIR)
        )

    def unwatch(self, watch: int) -> None:
        """Stop watching a directory; it is no error if it is gone. IN_IGNORED follows."""
        _libc.inotify_rm_watch(self._descriptor, watch)

    def read(self) -> Iterator[Event]:
        """Yield the events of one read(2); none if there is none."""
        try:
            events = os.read(self._descriptor, _BUFFER)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(events):
            watch, bits, _, size = _EVENT.unpack_from(events, offset)
            offset += _EVENT.size
            yield Event(watch, bits, os.fsdecode(events[offset : offset + size].rstrip(b"\0")))
            offset += size

    def close(self) -> None:
        os.close(self._descriptor)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
