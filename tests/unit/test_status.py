"""``multibinder status`` turns a report into a document, a table and a judgement."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from multibinder import BinderStatus, Counters, HolderStatus, OwnerStatus
from multibinder.cli.status_check import judge
from multibinder.cli.status_report import Report, Row
from multibinder.cli.status_table import table
from multibinder.cli.status_text import lines_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "status.md"
NOW = 1_800_000_000.0
ROW = Row(
    address="192.0.2.1:443",
    name=None,
    owners=[OwnerStatus("haproxy@web", 0)],
    state="serving",
    queue=0,
    limit=1000,
    backlog_requested=None,
    v6only=None,
    drops=0,
    drops_per_s=0.0,
    handoffs=3,
    created=NOW - 7300,
    cookie=1,
    inode=1,
    holders=[HolderStatus(812, "haproxy", "holding"), HolderStatus(815, "haproxy", "accepting")],
    orphan_since=None,
    orphan_ttl_s=None,
    stalled_since=None,
    repairs=0,
    repaired_at=None,
    kept=True,
    holders_complete=True,
)
BINDER = {
    "version": "1.0", "pid": 700, "started": NOW - 60, "keeper": "guard", "kept": 3, "kept_limit": 16,
    "listeners_limit": 16, "descriptors": 20, "descriptors_limit": 1024,
}  # fmt: skip


def report(*rows: Row) -> Report:
    return Report(1, NOW, (), BINDER, rows)


def row(**changes: object) -> Row:
    return msgspec.structs.replace(ROW, **changes)


def documented(heading: str) -> set[str]:
    """Return the names in the first column of the table below a heading."""
    section = DOCUMENT.read_text().partition(f"\n### {heading}\n")[2].partition("\n### ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}


def test_every_field_is_documented_and_nothing_else() -> None:
    assert documented("The report") == {*Report.__struct_fields__}
    assert documented("A listener") == {*Row.__struct_fields__}
    assert documented("The binder") == {*BinderStatus.__struct_fields__} - {"format", "listeners"}
    [counters] = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `counters`")]
    assert {*re.findall(r"`(\w+)`", counters)} - {"counters"} == {*Counters.__struct_fields__}


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({}, 0, "1 listener serving | "),
        ({"holders": None, "holders_complete": False}, 0, "1 listener; holders of 1 hidden"),
        ({"queue": 799}, 0, "1 listener serving | "),
        ({"queue": 800}, 1, "1 nearly full: 192.0.2.1:443 (800 of 1000)"),
        ({"drops": 9, "drops_per_s": 0.5}, 1, "1 dropping clients: 192.0.2.1:443 (0.5/s)"),
        ({"drops": 9}, 0, "1 listener serving | "),
        ({"kept": False}, 1, "1 not kept through a crash: 192.0.2.1:443"),
        ({"state": "repaired", "repaired_at": NOW - 60.0}, 1, "1 repaired: 192.0.2.1:443"),
        ({"state": "stalled", "queue": 2}, 2, "1 stalled: 192.0.2.1:443 (2 waiting)"),
        ({"state": "orphan", "holders": []}, 2, "1 orphan: 192.0.2.1:443 (0 waiting)"),
    ],
)
def test_the_judgement_follows_the_document(changes: dict[str, object], code: int, text: str) -> None:
    found, line = judge(report(row(**changes)))
    assert found == code
    assert line.startswith(text)
    assert line.count("|") == 1
    assert "\n" not in line


def test_of_many_problems_a_few_are_named_and_the_others_are_counted() -> None:
    rows = [row(address=f"192.0.2.{number}:80", state="orphan") for number in range(9)]
    assert judge(report(*rows))[1].startswith(
        "9 orphans: 192.0.2.0:80 (0 waiting), 192.0.2.1:80 (0 waiting), 192.0.2.2:80 (0 waiting) and 6 more |"
    )


def test_columns_that_do_not_fit_are_shown_below_the_row() -> None:
    narrow = lines_of(report(ROW), 80, colour=False)
    assert narrow[:3] == [
        "STATE    ADDRESS         QUEUE  DROPS  DROPS/S  HANDOFFS  AGE",
        "serving  192.0.2.1:443  0/1000      0        0         3   2h",
        "         haproxy@web: haproxy 812 holding, haproxy 815 accepting",
    ]
    wide = lines_of(report(ROW), 160, colour=False)
    assert wide[0].endswith("AGE  OWNERS       HOLDERS")
    assert wide[1].endswith("2h  haproxy@web  haproxy 812 holding, haproxy 815 accepting")


def test_only_the_word_of_the_state_is_coloured() -> None:
    plain, coloured = (lines_of(report(row(state="orphan", holders=[])), 80, colour=colour) for colour in (False, True))
    assert coloured[1] == plain[1].replace("orphan", "\x1b[31m\x1b[1morphan\x1b[0m", 1)
    assert "no holder" in plain[2]


def test_a_history_distinguishes_an_empty_queue_a_used_one_and_a_full_one() -> None:
    [_, [_, below]] = [None, table(report(ROW), 80, {}, {1: [0, 1, 500, 1000, 1001]})[1][0]]
    assert below.text.split()[0] == "▁▂▅██"
    below = table(report(ROW), 80, {}, {1: [0, 1, 500, 1000, 1001]}, ascii_only=True)[1][0][1]
    assert below.text.split()[0] == "_.=##"
