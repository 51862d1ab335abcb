"""Run work that grows with the number of listeners in slices, so that no client waits for all of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

from multibinder.binder.loop import Loop
from multibinder.binder.quotas import User
from multibinder.binder.turns import Turns

#: A piece of work. It does some tens of microseconds of work from one yield to the next.
Steps = Iterator[None]

#: The time of all slices together in one turn of the loop.
_TURN_S = 0.001


class Slices:
    """Run pieces of work step by step, between the other callbacks of ``loop``.

    Each piece belongs to the user who asked for it, or to the binder itself (None). A user's pieces run one after the
    other, and their time counts in the user's share of ``turns``. In each turn every user gets at least one step, or
    has it in the next turn.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.turns = Turns(loop)
        # In the order of their turns. No queue is empty.
        self._pieces: dict[User | None, deque[Steps]] = {}
        self._is_due = False

    def run(self, steps: Steps, user: User | None = None) -> None:
        """Run all ``steps``, from the next turn of the loop on."""
        self._pieces.setdefault(user, deque()).append(steps)
        self._call_soon()

    def _call_soon(self) -> None:
        if self._pieces and not self._is_due:
            self._is_due = True
            self._loop.call_later(0, self._run_some)

    def _run_some(self) -> None:
        self._is_due = False
        began = now = time.monotonic()
        try:
            for user in list(self._pieces):
                try:
                    self._run_for(user, began + _TURN_S)
                finally:
                    before, now = now, time.monotonic()
                    if user is not None:
                        self.turns.charge(user, now - before)
                if now - began > _TURN_S:
                    return
        finally:
            self._call_soon()

    def _run_for(self, user: User | None, end: float) -> None:
        """Run steps for one user until its share of the turn or the slices' time ends."""
        began = time.monotonic()
        # At the end of the order: in the next turn, the others are first.
        pieces = self._pieces[user] = self._pieces.pop(user)
        left_s = max(0.0, self.turns.left_s(user)) if user is not None else end - began
        until = min(end, began + left_s)
        try:
            while True:
                next(pieces[0])
                if time.monotonic() > until:
                    return
        except BaseException as error:
            # It is over; or it has failed, which the loop logs.
            pieces.popleft()
            if not pieces:
                del self._pieces[user]
            if not isinstance(error, StopIteration):
                raise
