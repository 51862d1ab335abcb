"""The structure of the catalogue."""

from __future__ import annotations

import msgspec

#: The mark in a message for a part that varies.
ANYTHING = "…"


class ErrorEntry(msgspec.Struct, frozen=True):
    """One error: its message, or several that have the same cause, and the remedy.

    ``messages`` have ``…`` for parts that vary, and may be shorter than the real ones. For an event, the message is its
    name. ``fragment`` is a part of the message as the code has it, if the rest comes from the kernel or elsewhere.
    """

    messages: tuple[str, ...]
    cause: str
    remedy: str
    fragment: str = ""

    def matches(self, text: str) -> bool:
        """Return whether ``text`` has the fragment, or the constant parts of one of the messages in their order."""
        if self.fragment and self.fragment in text:
            return True
        return any(has_in_order(text, message) for message in self.messages)


class Section(msgspec.Struct, frozen=True):
    """A table of the page. ``introduction`` is a paragraph of Markdown."""

    title: str
    introduction: str
    entries: tuple[ErrorEntry, ...]


def entry(*messages: str, cause: str, remedy: str, fragment: str = "") -> ErrorEntry:
    """Return an entry; a shorthand for the tables."""
    return ErrorEntry(messages, cause, remedy, fragment)


def has_in_order(text: str, message: str) -> bool:
    """Return whether ``text`` has the constant parts of ``message``, in their order."""
    at = 0
    for part in message.split(ANYTHING):
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True
