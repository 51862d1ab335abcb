"""Format the numbers, times and system errors that the commands print."""

from __future__ import annotations

import time
from collections.abc import Sequence

from multibinder.wire.status import OwnerStatus

#: An owner whose label is empty, in a sentence.
NO_LABEL = "a client without a label"


def age(seconds: float) -> str:
    """Return a duration in its largest unit, rounded down: ``59s``, ``3h``."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def clock(at: float) -> str:
    """Return the local time of day of a moment in seconds since the epoch."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def count(number: int, noun: str) -> str:
    """Return the number and the noun, in the plural unless the number is 1: ``1 listener``, ``10,000 listeners``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def rate_text(per_s: float) -> str:
    """Return a rate, with one decimal place below 100: ``0``, ``3.5``, ``1,200``."""
    return "0" if not per_s else f"{per_s:.1f}" if per_s < 100 else f"{per_s:,.0f}"


def reason_of(error: OSError) -> str:
    """Return the system's text for the error, for the middle of a sentence: ``permission denied``."""
    return (error.strerror or str(error)).lower()


def owner_names(owners: Sequence[OwnerStatus], without_label: str = NO_LABEL) -> list[str]:
    """Return the label of each owner, with the uid where several users have the same label."""
    labels = [owner.label for owner in owners]
    return [
        f"{owner.label or without_label} (uid {owner.uid})"
        if labels.count(owner.label) > 1
        else owner.label or without_label
        for owner in owners
    ]
