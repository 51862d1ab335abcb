"""How often a test repeats: a sample in ``make test``, all of it in ``make campaign``."""

from __future__ import annotations

import os

_VARIABLE = "MULTIBINDER_CAMPAIGN"


def times(sample: int, whole: int) -> int:
    """Return the number of repetitions."""
    return whole if os.environ.get(_VARIABLE) else sample
