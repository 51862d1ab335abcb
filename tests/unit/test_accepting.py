"""The answers of ``show fd`` are those of HAProxy 2.6.12, 2.8.0, 3.0.0, 3.2.0, 3.4.0 and 3.5-dev5."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from multibinder_haproxy.accepting import CannotTell, parse_descriptors, unused_binds
from multibinder_haproxy.config.model import Config, Place, Slot
from multibinder_haproxy.master import Master

_FLAGS = "st=0x020023(Cl heopi W:sRa R:sRA) ref=0 gid=1 tmask=0x3 umask=0x0 prmsk=0x3 pwmsk=0x0 owner=0x56489be79ac0"


def entry(number: int, state: str) -> str:
    return f"{number:7} : {_FLAGS} iocb=0x564861240470(sock_accept_iocb) l.st={state} fe=a fam=ipv4 lport=80\n\n"


class Answers(Master):
    """A master CLI that answers ``show fd N`` from a table."""

    def __init__(self, answer: Callable[[int], str], everything: str = "") -> None:
        super().__init__("/nonexistent")
        self._answer = answer
        self._everything = everything

    def ask(self, command: str, timeout_s: float = 5.0) -> str:
        words = [line.split() for line in command.splitlines()]
        return "".join(self._answer(int(line[-1])) if line[-1] != "fd" else self._everything for line in words)


def config(count: int) -> Config:
    slots = [Slot("127.0.0.1", 8000 + number) for number in range(count)]
    return Config({}, slots, places=[Place(slot.key, "web.cfg", 10 + at) for at, slot in enumerate(slots)])


def fds(config: Config) -> dict[str, int]:
    return {slot.key: 3 + number for number, slot in enumerate(config.slots)}


@pytest.mark.parametrize("state", ["RDY", "FUL", "LIM", "PAU"])
def test_a_listener_that_is_full_limited_or_paused_is_accepted_on(state: str) -> None:
    both = config(2)
    assert unused_binds(Answers(lambda fd: entry(fd, state)), [7], both, fds(both)) == []


@pytest.mark.parametrize("second", ["\n", entry(4, "LIS"), entry(4, "INI")])
def test_a_bind_that_haproxy_does_not_use_is_found_with_its_file_and_line(second: str) -> None:
    both = config(2)
    master = Answers(lambda fd: entry(3, "RDY") if fd == 3 else second)
    [bind] = unused_binds(master, [7], both, fds(both))
    assert (bind.key, bind.file, bind.line) == ("127.0.0.1:8001", "web.cfg", 11)


def test_a_listener_that_one_of_several_workers_accepts_on_is_used() -> None:
    one = config(1)
    answers = iter(["\n", entry(3, "RDY")])
    assert unused_binds(Answers(lambda fd: next(answers), entry(9, "RDY")), [7, 8], one, fds(one)) == []


@pytest.mark.parametrize(
    "answer", ["Permission denied\n\n", "Unknown command: 'show fd'\n\n", "", entry(3, "RDY")[:60]]
)
def test_an_answer_that_is_refused_or_cut_short_closes_nothing(answer: str) -> None:
    both = config(2)
    with pytest.raises(CannotTell):
        unused_binds(Answers(lambda fd: answer), [7], both, fds(both))


def test_a_worker_that_shows_no_descriptor_at_all_closes_nothing() -> None:
    both = config(2)
    with pytest.raises(CannotTell):
        unused_binds(Answers(lambda fd: "\n", everything=""), [7], both, fds(both))


def test_a_configuration_of_which_no_bind_is_used_is_told_by_the_other_descriptors_of_the_worker() -> None:
    both = config(2)
    assert len(unused_binds(Answers(lambda fd: "\n", everything=entry(9, "RDY")), [7], both, fds(both))) == 2


def test_more_binds_than_fit_one_question_are_all_asked_for() -> None:
    many = config(1000)
    unused = unused_binds(Answers(lambda fd: "\n" if fd == 900 else entry(fd, "RDY")), [7], many, fds(many))
    assert [bind.key for bind in unused] == ["127.0.0.1:8897"]


def test_other_descriptors_have_no_listener() -> None:
    assert parse_descriptors(f"     18 : {_FLAGS} back=0 cflg=0x00000300 fe=m mux=H1\n\n") == {18: ""}
