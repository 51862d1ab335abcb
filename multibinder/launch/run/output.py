"""The output of one copy: read from its pipe, written on with a prefix, and the last lines kept for reports."""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from collections.abc import Callable

from multibinder.kernel.terminal import printable_lines
from multibinder.launch.run.tasks import Event, readable, sleep

#: The number of lines that ``last`` has.
LAST_LINES = 20
#: A longer line is several: a copy may write without a newline for ever.
_LINE_SIZE = 8192
_READ_SIZE = 65536
#: The end of a line may not come for long: a prompt. It is searched for the pattern after this time.
_UNFINISHED_S = 0.2
#: So many reads of a copy that writes without end are done before others have their turn.
_READS_IN_A_TURN = 4
#: The priority of a line for the journal (sd-daemon(3)).
_PRIORITY = re.compile(rb"<[0-7]>")


class Output:
    """Reads ``descriptor``, which belongs to this object, and gives each line with its prefix to ``write``.

    ``pattern`` is searched in each line. ``matched`` is set by the first line that has it, and ``matched_line`` is that
    line. ``ended`` is set when no process has the other end any more.
    """

    def __init__(
        self, descriptor: int, prefix: str, write: Callable[[bytes], None], pattern: str | None = None
    ) -> None:
        self._descriptor = descriptor
        self._prefix = prefix.encode()
        self._write = write
        self._pattern = re.compile(pattern.encode()) if pattern is not None else None
        self._last: deque[bytes] = deque(maxlen=LAST_LINES)
        self._unfinished = b""
        self.matched = Event()
        self.matched_line = ""
        self.ended = Event()
        os.set_blocking(descriptor, False)

    @property
    def last(self) -> list[str]:
        """The last lines, safe to print; without the line that has not ended."""
        return [printable_lines(line.decode(errors="replace")) for line in self._last]

    async def read(self) -> None:
        """Read until no process has the other end."""
        while not self.ended.is_set:
            wants_more = self._unfinished and self._pattern is not None and not self.matched.is_set
            if not await readable(self._descriptor, _UNFINISHED_S if wants_more else None):
                self._search(self._unfinished)
                await readable(self._descriptor)
            self.read_waiting()
            await sleep(0)

    def read_waiting(self) -> None:
        """Read what is there now, but not for ever. At the end of a copy, this gets its last lines."""
        for _ in range(_READS_IN_A_TURN):
            try:
                more = os.read(self._descriptor, _READ_SIZE)
            except BlockingIOError:
                return
            except OSError:
                more = b""
            if not more:
                self._finish()
                return
            self._take(more)

    def close(self) -> None:
        """Close the descriptor. A copy that still writes gets SIGPIPE, unless it has the other end open to read."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1
            self._finish()

    def _finish(self) -> None:
        if self._unfinished:
            self._line(self._unfinished)
            self._unfinished = b""
        self.ended.set()

    def _take(self, more: bytes) -> None:
        *lines, rest = (self._unfinished + more).split(b"\n")
        for line in lines:
            self._long_line(line)
        while len(rest) > _LINE_SIZE:
            self._line(rest[:_LINE_SIZE])
            rest = rest[_LINE_SIZE:]
        self._unfinished = rest

    def _long_line(self, line: bytes) -> None:
        for start in range(0, len(line) or 1, _LINE_SIZE):
            self._line(line[start : start + _LINE_SIZE])

    def _line(self, line: bytes) -> None:
        self._search(line)
        self._last.append(line)
        # The journal takes the priority from the start of the line only.
        priority = found[0] if (found := _PRIORITY.match(line)) else b""
        self._write(b"%b%b%b\n" % (priority, self._prefix, line[len(priority) :]))

    def _search(self, line: bytes) -> None:
        if self._pattern is not None and not self.matched.is_set and self._pattern.search(line):
            self.matched_line = printable_lines(line.decode(errors="replace"))
            self.matched.set()
