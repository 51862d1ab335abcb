"""What the checks report."""

from __future__ import annotations

from typing import Literal

import msgspec

#: ``problem``: clients are lost or hang now, or any user can do harm. ``warning``: they will, when something else
#: happens as well. ``note``: useful while looking for a reason; nothing has to be done.
Level = Literal["problem", "warning", "note"]


class Finding(msgspec.Struct, frozen=True):
    """A result. ``check`` is the name of the check, ``where`` says what it is about, ``remedy`` is one line to type."""

    check: str
    level: Level
    what: str
    where: str
    why: str
    remedy: str


class Unchecked(msgspec.Struct, frozen=True):
    """Something that could not be checked: ``why``, and one line to type that would allow it (or empty)."""

    what: str
    why: str
    remedy: str = ""
