"""What a check says."""

from __future__ import annotations

from typing import Literal

import msgspec

#: ``problem``: clients are lost or hang now, or anybody can do harm. ``warning``: they will, when something else
#: happens too. ``note``: good to know while looking for a reason; nothing has to be done.
Level = Literal["problem", "warning", "note"]


class Finding(msgspec.Struct, frozen=True):
    """``check`` names the check; ``remedy`` is one line to type."""

    check: str
    level: Level
    what: str
    where: str
    why: str
    remedy: str


class Unchecked(msgspec.Struct, frozen=True):
    """Something that could not be looked at: ``why``, and the line to type that would show it (or empty)."""

    what: str
    why: str
    remedy: str = ""
