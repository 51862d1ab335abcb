"""The servers of docs/frameworks.md. ``make frameworks`` restarts each of them ten times in each way."""

from __future__ import annotations

from pathlib import Path

import pytest

from multibinder.pytest_plugin import RunningBinder
from tests.frameworks.campaign import missing, restart
from tests.frameworks.rows import BARE, ROWS, Row
from tests.support.restarts import Way

PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"
#: Only these are restarted by ``make test``: their servers need no package, and start quickly.
SAMPLE = ("socketserver", "asyncio", "TLS, wrap_socket")


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in SAMPLE], ids=lambda row: row.name)
def test_a_busy_server_that_is_stopped_and_started_again_loses_no_client(
    row: Row, multibinder_binder: RunningBinder, tmp_path: Path
) -> None:
    if absent := missing(row):
        pytest.skip(f"{', '.join(absent)} not installed: 'make frameworks' does")
    outcome = restart(row, 1, Way.BUSY_STOP, directory=tmp_path, binder=multibinder_binder)
    assert (outcome.lost, outcome.ends) == (0, ["0", "0"]), f"{outcome}\n{outcome.log}"
    assert outcome.copies >= 2


def test_the_page_has_each_server_that_is_restarted() -> None:
    page = PAGE.read_text()
    assert [row.name for row in ROWS if f"| {row.name.removesuffix(BARE)} |" not in page] == []
