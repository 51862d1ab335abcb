"""Shorten text of a peer before it is quoted in a message."""

from __future__ import annotations

_HEAD = 80
_TAIL = 40


def excerpt(text: str) -> str:
    """Return ``text``, or its beginning and end if it is long.

    A request may have half a megabyte. If a refusal quoted all of it, a thousand clients that do not read their
    refusals would fill the memory.
    """
    return text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]}…{text[-_TAIL:]}"
