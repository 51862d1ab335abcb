"""Rules for the time until the binder closes an orphan (``multibinder serve --orphan-ttl``)."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

import msgspec


class OrphanTtl(msgspec.Struct, frozen=True):
    """A rule: an orphan that it applies to is closed after ``seconds``, or never if that is None.

    ``of`` is an address, a pattern for an owner's label (fnmatch), or empty for every listener.
    """

    of: str
    seconds: float | None

    def specificity(self, address: str, labels: Sequence[str]) -> int:
        """Return the specificity for a listener: 3 by address, 2 by label, 1 as the default, 0 if it does not apply."""
        if self.of == address:
            return 3
        if any(label and fnmatch.fnmatchcase(label, self.of) for label in labels):
            return 2
        return 0 if self.of else 1


def orphan_ttl_of(rules: Iterable[OrphanTtl], address: str, labels: Sequence[str]) -> float | None:
    """Return the seconds of the most specific rule for a listener, the first one of equals; None for never."""
    best, seconds = 0, None
    for rule in rules:
        if (specificity := rule.specificity(address, labels)) > best:
            best, seconds = specificity, rule.seconds
    return seconds
