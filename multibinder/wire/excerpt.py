"""Shorten text of a peer, or a value of a caller, before it is quoted in a message."""

from __future__ import annotations

_HEAD = 80
_TAIL = 40


def excerpt(text: str) -> str:
    """Return ``text``, or its beginning and end if it is long.

    A request may have half a megabyte. If a refusal quoted all of it, a thousand clients that do not read their
    refusals would fill the memory.
    """
    return text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]}…{text[-_TAIL:]}"


def shown(value: object) -> str:
    """Return the ``repr`` of a value, shortened; its type if it has none, as an int of more than 4300 digits."""
    try:
        return excerpt(repr(value))
    except Exception:  # whatever a class of the caller raises, the message is about something else
        return f"of type {type(value).__name__}"
