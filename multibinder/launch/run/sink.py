"""The log of ``run``: where the lines of all copies go. Nobody waits for its reader."""

from __future__ import annotations

from multibinder.kernel.line_writer import LineWriter
from multibinder.launch.run.tasks import Event, sleep

#: How often a reader that does not read is tried again. It may be a file or a socket, which poll(2) cannot tell of.
_RETRY_S = 0.05


class Sink:
    """Writes lines to a descriptor, which belongs to the caller. What its reader has no room for is lost, and counted.

    When it reads again, a line says how many are lost.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self._writer = LineWriter(descriptor)
        self._name = name
        self._has_waiting = Event()

    def write(self, line: bytes) -> None:
        """Write a line, with its newline. Never raises OSError, and never waits."""
        self._writer.write(line)
        self._say_lost()
        if self._writer.is_waiting:
            self._has_waiting.set()

    async def write_waiting(self) -> None:
        """Write for ever what the reader had no room for."""
        while True:
            await self._has_waiting.wait()
            self._writer.flush()
            self._say_lost()
            if self._writer.is_waiting:
                await sleep(_RETRY_S)
            else:
                self._has_waiting.clear()

    def close(self) -> None:
        """Write what can be written now, and close what was opened here."""
        self._writer.flush()
        self._writer.close()

    def _say_lost(self) -> None:
        lost = self._writer.lost
        if lost and not self._writer.is_waiting:
            self._writer.lost = 0
            self._writer.write(f"{self._name}: {lost} lines of output are lost: their reader was slow\n".encode())
