"""A program that cannot be executed leaves every descriptor where it was, for who knows it by its number."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from tests.support import clean_environment

_PROGRAM = """
import errno, json, os, random, resource, sys
from multibinder.kernel import handover
from multibinder.kernel.listen_fds import FIRST, move_to_front

def make(number):
    # A file of its own at each number, so that fstat(2) tells them apart.
    memfd = os.memfd_create("x")
    if memfd != number:
        os.dup2(memfd, number, inheritable=False)
        os.close(memfd)
    return os.fstat(number).st_ino

numbers, foreign, command, limit, name = json.loads(sys.argv[1])
of = {number: make(number) for number in sorted([*numbers, *foreign], reverse=True)}
if limit:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
before = dict(os.environ)
back, error = handover.execute(command, [(name, number) for number in numbers], before)
print(json.dumps([
    errno.errorcode[error.errno],
    [os.fstat(number).st_ino for _, number in back] == [of[number] for number in numbers],
    [os.fstat(number).st_ino for number in foreign] == [of[number] for number in foreign],
    any(os.get_inheritable(number) for number in [*foreign, *(number for _, number in back)]),
    sorted(int(n) for n in os.listdir("/proc/self/fd")).__len__() - 1 - 3 - len(of),
    before == dict(os.environ),
]))
"""


def execute_fails(
    numbers: list[int], foreign: list[int], command: str = "/nowhere/python", limit: int = 0, name: str = ""
) -> str:
    argument = json.dumps([numbers, foreign, [command], limit, name])
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, argument],
        env=clean_environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    error, *kept = json.loads(done.stdout)
    assert kept == [True, True, False, 0, True]
    return str(error)


@pytest.mark.parametrize(
    ("numbers", "foreign"),
    [
        ([3, 4, 5], []),
        ([5, 4, 3], [6]),
        ([10, 3, 11], [4, 5]),
        ([20, 21, 22, 3], [4, 6]),
        ([4, 5, 6, 3], [7]),
        ([], [3]),
    ],
)
def test_everything_has_its_number_after_a_failed_exec(numbers: list[int], foreign: list[int]) -> None:
    assert execute_fails(numbers, foreign) == "ENOENT"


def test_everything_has_its_number_after_a_failed_exec_in_any_order() -> None:
    chance = random.Random(10)
    for _ in range(5):
        numbers = chance.sample(range(3, 60), 40)
        foreign = [number for number in chance.sample(range(3, 60), 30) if number not in numbers]
        assert execute_fails(numbers, foreign) == "ENOENT"


def test_names_that_are_too_long_are_an_error_like_any_other() -> None:
    assert execute_fails([30, 31], [3, 4], "/bin/true", name="x" * 70_000) == "E2BIG"


def test_a_limit_that_does_not_allow_the_numbers_is_found_before_anything_is_moved() -> None:
    assert execute_fails(list(range(40, 60)), [3, 4], "/bin/true", limit=25) in ("EINVAL", "EMFILE")
