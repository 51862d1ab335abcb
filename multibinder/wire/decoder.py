"""Split a stream of bytes into messages. No I/O.

Every message is one JSON object. It ends with the object, because the Ruby program's client and server send no newline.
A newline also ends it, so that the message after a broken one is read. The result does not depend on the pieces in
which the bytes arrive.

The end is found by counting the braces outside of strings; the reader of the message checks that it is JSON. Each byte
is examined once, even if the pieces are small, so a few bytes of a peer cannot cause much work.
"""

from __future__ import annotations

import re

from multibinder.wire.errors import RemoteProtocolError

#: The first pattern matches up to the next brace outside of strings, the next newline, or the beginning of a string
#: that has not ended. The second one matches up to the end of such a string. Each byte matches in one way only, so the
#: time of a match is linear. Possessive quantifiers would be clearer, but Python 3.11.2 (Debian 12) has a bug with
#: nested ones (CPython #106052).
_PLAIN = re.compile(rb'[^"{}\n]*(?:"[^"\\\n]*(?:\\[^\n][^"\\\n]*)*"[^"{}\n]*)*')
_IN_STRING = re.compile(rb'[^"\\\n]*(?:\\[^\n][^"\\\n]*)*')
_NEWLINE, _QUOTE, _OPEN, _BACKSLASH = b'\n"{\\'


class Decoder:
    """A buffer that bytes are fed to as they arrive, and that messages are taken from until ``next_message`` is None.

    ``limit`` is the largest message in bytes. If a peer exceeds it, or sends what cannot become an object,
    ``next_message`` raises RemoteProtocolError, and the stream cannot be used any more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        # The first ``_known`` bytes of the message at the beginning of the buffer have been examined. They end inside
        # ``_depth`` objects, and perhaps inside a string. The first byte is the brace that opens the message.
        self._known = 1
        self._depth = 1
        self._in_string = False

    def feed(self, arrived: bytes) -> None:
        self._buffer += arrived

    @property
    def held(self) -> int:
        """The number of bytes that belong to no message yet."""
        return len(self._buffer)

    @property
    def pending(self) -> bytes:
        """The bytes that belong to no message yet. Another decoder that is fed with them goes on from here."""
        return bytes(self._buffer)

    @property
    def unfinished(self) -> bool:
        """True if a message has begun and not ended. Use it after ``next_message`` has returned None."""
        return bool(self._buffer)

    def next_message(self) -> bytes | None:
        """Return one message without its newline, or None until more has arrived."""
        buffer = self._buffer
        if buffer[:1].isspace():
            blank = len(buffer) - len(buffer.lstrip())
            del buffer[:blank]
        if not buffer:
            return None
        if buffer[0] != _OPEN:
            raise RemoteProtocolError(_not_an_object(bytes(buffer[:20])))
        end = self._find_end()
        if (len(buffer) if end is None else end) > self._limit:
            raise RemoteProtocolError(f"a message has more than {self._limit} bytes")
        if end is None:
            return None
        message = bytes(buffer[:end])
        del buffer[: end + 1 if buffer[end : end + 1] == b"\n" else end]
        self._known = self._depth = 1
        self._in_string = False
        return message

    def _find_end(self) -> int | None:
        """Return the offset after the first message in the buffer; None if its end has not arrived."""
        buffer, at, depth, in_string = self._buffer, self._known, self._depth, self._in_string
        while (at := _end_of_run(buffer, at, in_string)) < len(buffer):
            byte = buffer[at]
            if byte == _NEWLINE:
                return at
            if byte == _BACKSLASH:  # in a string; the byte that it escapes is not part of the run
                if at + 1 == len(buffer):
                    break  # that byte has not arrived
                return at + 1  # it is a newline, which ends a message, escaped or not
            at += 1
            if byte == _QUOTE:
                in_string = not in_string
            elif byte == _OPEN:
                depth += 1
            else:  # the brace that closes
                depth -= 1
                if depth == 0:
                    return at
        self._known, self._depth, self._in_string = at, depth, in_string
        return None


def _end_of_run(buffer: bytearray, at: int, in_string: bool) -> int:
    match = (_IN_STRING if in_string else _PLAIN).match(buffer, at)
    return match.end() if match else at  # both patterns also match the empty string


def _not_an_object(start: bytes) -> str:
    if start.startswith(b"["):
        return "JSON-RPC batches are not supported: send one object after the other"
    return f"not a JSON object: {start!r}"
