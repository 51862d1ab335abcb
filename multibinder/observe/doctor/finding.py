"""The results of checks: findings, and subjects that could not be checked."""

from __future__ import annotations

from typing import Literal

import msgspec

#: ``problem``: clients are lost or hang now, or any user can do harm. ``warning``: that happens if another fault is
#: added. ``note``: a fact that helps to find a reason; no action is needed.
Level = Literal["problem", "warning", "note"]


class Finding(msgspec.Struct, frozen=True):
    """A result of the check named ``check``. ``where`` is its subject, ``remedy`` is one line to type."""

    check: str
    level: Level
    what: str
    where: str
    why: str
    remedy: str


class Unchecked(msgspec.Struct, frozen=True):
    """A subject that could not be checked. ``remedy`` is one line to type that would allow the check, or empty."""

    what: str
    why: str
    remedy: str = ""
