"""Log lines that a client can cause at will are limited, and the log says how many are missing."""

from __future__ import annotations

from multibinder.binder.events import Limit
from tests.support.waiting import wait_until


class Lines(list[dict[str, object]]):
    """The fields of the events that were logged."""

    def emit(self, name: str, **fields: object) -> None:
        self.append({"event": name, **fields})


def test_lines_of_one_kind_about_one_uid_are_limited() -> None:
    limit, lines = Limit(), Lines()
    for number in range(25):
        limit.log(lines.emit, "bound", 1000, number=number)
    assert [line["number"] for line in lines] == list(range(20))
    limit.log(lines.emit, "bound", 1001)
    limit.log(lines.emit, "released", 1000)
    assert len(lines) == 22


def test_the_next_line_says_how_many_were_left_out() -> None:
    limit, lines = Limit(per_s=0.3), Lines()
    for _ in range(25):
        limit.log(lines.emit, "rude", 1000)

    def told() -> bool:
        limit.log(lines.emit, "rude", 1000)
        return "left_out" in lines[-1]

    wait_until(told, "the next line is logged when the period is over")
    assert lines[-1]["left_out"] >= 5  # type: ignore[operator]


def test_the_number_of_lines_left_out_needs_no_further_event() -> None:
    limit, lines = Limit(per_s=0.3), Lines()
    for _ in range(25):
        limit.log(lines.emit, "bound", 1000, uid=1000, address="127.0.0.1:80")
    limit.tell()
    assert len(lines) == 20

    def told() -> bool:
        limit.tell()
        return len(lines) > 20

    wait_until(told, "the number is logged when the period is over")
    assert lines[-1] == {"event": "bound", "uid": 1000, "left_out": 5}
    limit.tell()
    assert len(lines) == 21


def test_many_keys_do_not_end_the_limit_of_one() -> None:
    limit, lines = Limit(), Lines()
    for key in range(3000):
        limit.log(lines.emit, "bound", key)
        limit.log(lines.emit, "bound", "the one")
    assert len(lines) < 1024 + 40
