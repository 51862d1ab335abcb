"""What a peer sent, as it may stand in a message of ours."""

from __future__ import annotations

_HEAD = 80
_TAIL = 40


def excerpt(text: str) -> str:
    """``text``, or its beginning and its end where it is too long to be read.

    A request may have half a megabyte. If the refusal quoted all of it, escaped, a thousand clients that do not read
    theirs would fill the memory.
    """
    return text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]}…{text[-_TAIL:]}"
