"""Settle the handoffs of one client: in slices if they are thousands, so that no other client waits for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from multibinder.binder.handoffs import Handoffs
from multibinder.binder.listener import Grant, Listener
from multibinder.binder.quotas import User
from multibinder.binder.slices import Slices

#: As many are settled in a millisecond.
_PER_STEP = 32


class Settlements:
    """Confirm grants, or take them back, and charge the work to their user.

    What is not settled yet when the binder ends is pending in the records: the next one settles it.
    """

    def __init__(self, handoffs: Handoffs, slices: Slices) -> None:
        self._handoffs = handoffs
        self._slices = slices

    def confirm(self, user: User, grants: Sequence[Grant]) -> None:
        """Note that a client of ``user`` holds what was granted. The grants are settled when this returns."""
        changed = self._handoffs.note_confirmed(grants)
        if len(changed) <= _PER_STEP:
            self._handoffs.write(changed)
        else:
            self._slices.run(self._write(changed), user)

    def take_back(self, user: User, grants: Sequence[Grant]) -> None:
        """Undo grants that the client of ``user`` does not hold."""
        if len(grants) <= _PER_STEP:
            self._handoffs.take_back(grants)
        else:
            self._slices.run(self._handoffs.take_back_in_steps(grants), user)

    def settle(self, user: User, grants: Sequence[Grant], *, received: bool) -> None:
        """Confirm grants that were received; take others back."""
        (self.confirm if received else self.take_back)(user, grants)

    def _write(self, changed: Sequence[Listener]) -> Iterator[None]:
        for first in range(0, len(changed), _PER_STEP):
            yield
            self._handoffs.write(changed[first : first + _PER_STEP])
