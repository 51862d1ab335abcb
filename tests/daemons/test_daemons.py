"""The daemons of docs/daemons.md. ``make daemons`` restarts each of them ten times in each way."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from multibinder.launch import binds
from multibinder.launch.run import config
from multibinder.pytest_plugin import RunningBinder
from tests.daemons.campaign import RATE, looks, restart
from tests.daemons.row import EXAMPLES, Row
from tests.daemons.rows import ROWS
from tests.support.campaign import times
from tests.support.restarts import Way

#: What ``make test`` tries.
WAYS = (Way.OVERLAP, Way.BUSY_STOP)
PAGE = Path(__file__).parents[2] / "docs" / "daemons.md"
#: Only these are restarted by ``make test``: their daemons need no package, and start quickly.
SAMPLE = ("asyncio", "socketserver", "a UDP server", "aiohttp", "HAProxy", "Node.js")
#: A reload waits until the new copy is stable, which takes two seconds.
RELOADED = ("asyncio", "a UDP server")

sample = pytest.mark.parametrize("row", [row for row in ROWS if row.name in SAMPLE], ids=lambda row: row.name)


@pytest.fixture(autouse=True)
def _installed(request: pytest.FixtureRequest) -> None:
    row = getattr(request.node, "callspec", None) and request.node.callspec.params.get("row")
    if row and (absent := row.missing()):
        pytest.skip(f"{', '.join(absent)} not installed: 'make daemons' does")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name.lower())
@sample
def test_a_daemon_that_is_restarted_as_its_example_says_loses_no_client(
    row: Row, way: Way, multibinder_binder: RunningBinder, tmp_path: Path
) -> None:
    rounds, rate = times(1, 10), times(200, RATE)
    outcome = restart(row, rounds, way, directory=tmp_path, binder=multibinder_binder, rate=rate)
    assert (outcome.lost, set(outcome.ends)) == (0, {"0"}), f"{outcome}\n{outcome.log}"
    assert outcome.copies == rounds + 1


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in RELOADED], ids=lambda row: row.name)
def test_a_daemon_that_run_reloads_as_its_example_says_loses_no_client(
    row: Row, multibinder_binder: RunningBinder, tmp_path: Path
) -> None:
    rounds, rate = times(1, 10), times(200, RATE)
    outcome = restart(row, rounds, Way.RELOAD, directory=tmp_path, binder=multibinder_binder, rate=rate)
    assert (outcome.lost, set(outcome.ends)) == (0, {"0"}), f"{outcome}\n{outcome.log}"
    assert outcome.copies == rounds + 1


def test_what_a_daemon_does_to_its_listener_is_seen() -> None:
    [row] = [row for row in ROWS if row.name == "asyncio"]
    assert [re.sub(r"queue \d+,", "queue N,", line) for line in looks(row)] == [
        "queue N, O_NONBLOCK 0 then 1, at its end it is open",
        "with a path: queue N, O_NONBLOCK 0 then 1, at its end it is open",
    ]


def test_the_page_has_each_daemon_that_is_restarted() -> None:
    named = re.findall(r"^\| \[?([^\]|]+?)\]?(?:\(#[^)]*\))?(, [^|]+)? \|", PAGE.read_text(), re.MULTILINE)
    assert {row.name for row in ROWS if row.ways != (Way.OWN,)} <= {name + rest for name, rest in named}


@pytest.mark.parametrize(
    "directory", sorted(path for path in EXAMPLES.iterdir() if path.is_dir()), ids=lambda p: p.name
)
def test_each_example_is_that_of_a_row_and_has_options_that_run_knows(directory: Path) -> None:
    assert directory.name in {row.example for row in ROWS}
    for path in directory.glob("*.toml"):
        options, _ = config.read(str(path), binds.parse_all)
        assert options.command, path
        assert path.with_suffix(".service").exists()
