"""From bytes to messages. No I/O.

Every message is one JSON object. It ends where its object ends (the Ruby program's client and server send no newline),
and at the latest at a newline, because whoever sent something broken will send the next thing on a line of its own.
Only the bytes decide that, never the pieces in which they arrive.

To find the end, braces are counted outside of strings; whether what is between them is JSON is the reader's business.
Each byte is looked at once, however small the pieces: a peer cannot buy much work with few bytes.
"""

from __future__ import annotations

import re

from multibinder.wire.errors import RemoteProtocolError

#: Up to the next brace outside of strings, the next newline, or the beginning of a string that has not ended; and up to
#: the end of such a string. Each byte matches in one way only, so that a match costs what it covers and no more.
#: (Possessive quantifiers would say so; Python 3.11.2, which is Debian 12's, gets nested ones wrong: CPython #106052.)
_PLAIN = re.compile(rb'[^"{}\n]*(?:"[^"\\\n]*(?:\\[^\n][^"\\\n]*)*"[^"{}\n]*)*')
_IN_STRING = re.compile(rb'[^"\\\n]*(?:\\[^\n][^"\\\n]*)*')
_NEWLINE, _QUOTE, _OPEN, _BACKSLASH = b'\n"{\\'


class Decoder:
    """Feed it bytes as they arrive, take messages out until there is none.

    ``limit`` is the largest message in bytes; a peer that exceeds it, or sends what cannot become an object, gets a
    RemoteProtocolError from ``next_message``, and the stream is of no more use.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        # How far the message at the beginning of the buffer is known, and where that is: inside how many objects, and
        # inside a string or not. Its first byte is the brace that opens it.
        self._known = 1
        self._depth = 1
        self._in_string = False

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
        """Where the message at the beginning of the buffer ends; None if that has not arrived."""
        buffer, at, depth, in_string = self._buffer, self._known, self._depth, self._in_string
        while (at := _end_of_run(buffer, at, in_string)) < len(buffer):
            byte = buffer[at]
            if byte == _NEWLINE:
                return at
            if byte == _BACKSLASH:  # in a string, and what it escapes is no part of the run
                if at + 1 == len(buffer):
                    break  # it has not arrived
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
    return match.end() if match else at  # each of them matches nothing, if need be


def _not_an_object(start: bytes) -> str:
    if start.startswith(b"["):
        return "JSON-RPC batches are not supported: send one object after the other"
    return f"not a JSON object: {start!r}"
