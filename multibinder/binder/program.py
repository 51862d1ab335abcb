"""The program that runs the daemon."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from multibinder.binder.address_search import WhoListens
from multibinder.binder.holder_scan import FindHolders
from multibinder.binder.settings import Timings
from multibinder.observe.holders import holders_of


class Program(msgspec.Struct, frozen=True):
    """The program that runs the daemon: its version, and the functions that the daemon gets from it.

    This process executes ``command`` to upgrade itself. ``who_listens`` names the processes that have addresses. Only
    tests give other ``find_holders`` and ``timings``.
    """

    version: str
    command: Sequence[str]
    who_listens: WhoListens
    find_holders: FindHolders = holders_of
    timings: Timings = Timings()
