"""The daemons that are not written in Python."""

from __future__ import annotations

from tests.daemons.row import Row

ROWS: tuple[Row, ...] = ()
