"""The state file: the records of all listeners beside the control socket, for recovery when the keeper is dead too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable

from multibinder.binder import events
from multibinder.binder.record_lines import RecordLines
from multibinder.binder.records import Record
from multibinder.kernel import files


class StateFile:
    """Writes the file at ``path``. No error of the file is raised; the file is written again later.

    ``content`` returns all lines that the file should have. A file that could not be written has fallen behind: until
    it is written anew, the only change that it gets is that a listener was released. Without that mark, the next
    binder would open a port again that was released. If it cannot be marked either, it is removed.
    """

    def __init__(self, path: str, content: Callable[[], bytes]) -> None:
        self._path = path
        self._content = content
        self._lines: RecordLines | None = None
        self._is_behind = False

    def write_anew(self, content: bytes | None = None) -> None:
        """Replace the file with one that has the present content, which is ``content`` if the caller has it."""
        try:
            descriptor = files.replace_and_keep_open(self._path, self._content() if content is None else content)
        except OSError as error:
            if self._lines is None:
                self._lines = self._open_previous()
            self._fall_behind(error)
            return
        self.close()
        self._lines = RecordLines(descriptor)
        if self._is_behind:
            self._is_behind = False
            events.info("state-file-written", path=self._path)

    def append(self, text: bytes, released: Iterable[Record]) -> None:
        """Append lines. ``released`` are those among them whose listeners are released."""
        if not self._is_behind and self._lines is not None:
            try:
                self._lines.append(text)
            except OSError as error:
                self._fall_behind(error)
            else:
                return
        self._mark_released(released)

    def check(self) -> None:
        """Write the file again if it has fallen behind, or if its path has another file or none."""
        if not self._is_behind and not self._is_at_path():
            events.warning("state-file-gone", path=self._path, why="another program has removed or replaced it")
            self._is_behind = True
        if self._is_behind:
            self.write_anew()

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def close(self) -> None:
        """Close the file, which stays."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def _mark_released(self, released: Iterable[Record]) -> None:
        try:
            if self._lines is not None:
                self._lines.mark_released(released)
        except (OSError, ValueError) as error:
            self._empty()
            self.remove()
            why = f"a release cannot be recorded in it: {error}; a port that was released must not be opened again"
            events.error("state-file-removed", path=self._path, why=why)

    def _empty(self) -> None:
        if self._lines is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._lines.descriptor, 0)  # in case that its name cannot be removed
        self.close()

    def _fall_behind(self, error: OSError) -> None:
        if not self._is_behind:
            why = f"{error.strerror}; until it can be, a binder whose whole tree is killed cannot find newer sockets"
            events.error("state-file-lost", path=self._path, why=why, done="it is tried again")
        self._is_behind = True

    def _open_previous(self) -> RecordLines | None:
        """Open the file that an earlier binder wrote, so that releases can be marked in it."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        if files.is_trusted_file(descriptor):
            return RecordLines(descriptor)
        os.close(descriptor)
        return None

    def _is_at_path(self) -> bool:
        if self._lines is None:
            return False
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self._lines.descriptor), os.lstat(self._path))
        return False
