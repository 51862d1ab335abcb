"""The sorts of programs whose units can be taken over."""

from __future__ import annotations

from multibinder.launch.units.haproxy import HAProxy
from multibinder.launch.units.unit import Unit
from multibinder.launch.units.way import Way

#: The first one that knows the unit's program counts.
WAYS: tuple[Way, ...] = (HAProxy(),)


def way_for(unit: Unit) -> Way | None:
    """Return how the unit's program is taken over; None if no way with its sockets is known."""
    return next((way for way in WAYS if way.serves(unit)), None)
