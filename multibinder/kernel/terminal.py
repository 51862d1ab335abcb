"""Make text of other users safe to print: without the characters that a terminal obeys."""

from __future__ import annotations

import json
import re

from multibinder.kernel.process import printable

#: Control characters, also of Latin-1, overrides of the writing direction, and other characters that have no glyph.
_IN_JSON = re.compile(r"[^\n\x20-\x7e]")


def printable_lines(text: str) -> str:
    """Return lines without what a terminal obeys. A newline stays, and a tab; a carriage return does not."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def printable_json(text: str) -> str:
    """Return the same JSON value, with each unprintable character of its strings escaped."""
    return _IN_JSON.sub(lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text)
