"""The table of daemons: the rows of all languages."""

from __future__ import annotations

from tests.daemons import other_rows, python_rows

ROWS = (*python_rows.ROWS, *other_rows.ROWS)
