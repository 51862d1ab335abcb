"""The sorts of programs whose units can be taken over."""

from __future__ import annotations

from collections.abc import Sequence

from multibinder.launch.units.haproxy import HAProxy
from multibinder.launch.units.nginx import Nginx
from multibinder.launch.units.other import Other
from multibinder.launch.units.unit import Unit
from multibinder.launch.units.way import Way


def way_for(unit: Unit, styles: Sequence[str] = ()) -> Way | None:
    """Return how the unit's program is taken over; None if the unit has no single command.

    ``styles`` are those of 'multibinder exec', for a program that is not known.
    """
    ways: tuple[Way, ...] = (HAProxy(), Nginx(), Other(styles))
    return next((way for way in ways if way.serves(unit)), None)
