"""From bytes to messages. No I/O.

A newline ends a message, and so does a complete JSON object with nothing after it: the Ruby program's client and
server send no newline. Every message is one JSON object, so the first byte already tells a stranger.
"""

from __future__ import annotations

import msgspec

from multibinder.wire.errors import RemoteProtocolError

#: Only messages up to this size may lack their newline. Each arrival that might complete one costs a parse of what
#: is there; the Ruby program's messages have about 150 bytes.
UNTERMINATED_LIMIT = 65536

_skip = msgspec.json.Decoder(msgspec.Raw)


class Decoder:
    """Feed it bytes as they arrive, take messages out until there is none.

    ``limit`` is the largest message in bytes; a peer that exceeds it, or sends what cannot become an object, gets a
    RemoteProtocolError from ``next_message``, and the stream is of no more use.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, arrived: bytes) -> None:
        self._buffer += arrived

    @property
    def held(self) -> int:
        """How many bytes are here that no message was made of."""
        return len(self._buffer)

    @property
    def unfinished(self) -> bool:
        """Whether the beginning of a message is here and its end is not (ask when ``next_message`` gave None)."""
        return bool(self._buffer)

    def next_message(self) -> bytes | None:
        """One message without its newline, or None until more has arrived."""
        buffer = self._buffer
        if buffer[:1].isspace():
            blank = len(buffer) - len(buffer.lstrip())
            del buffer[:blank]
        if not buffer:
            return None
        if buffer[0] != ord("{"):
            raise RemoteProtocolError(_not_an_object(bytes(buffer[:20])))
        end = buffer.find(b"\n", self._searched)
        if end < 0 and buffer[-1] == ord("}") and len(buffer) <= UNTERMINATED_LIMIT and _is_complete(buffer):
            end = len(buffer)
        if (end if end >= 0 else len(buffer)) > self._limit:
            raise RemoteProtocolError(f"a message has more than {self._limit} bytes")
        if end < 0:
            self._searched = len(buffer)
            return None
        message = bytes(buffer[:end])
        del buffer[: end + 1]
        self._searched = 0
        return message


def _is_complete(text: bytearray) -> bool:
    try:
        _skip.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return False
    return True


def _not_an_object(start: bytes) -> str:
    if start.startswith(b"["):
        return "JSON-RPC batches are not supported: send one object after the other"
    return f"not a JSON object: {start!r}"
