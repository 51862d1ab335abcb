from __future__ import annotations

import subprocess

import pytest
from multibinder_haproxy.as_owner import failure_of

from multibinder.launch.errors import LaunchError, NoSuchInstance, NotAnswering, NotRunning


def ended(code: int, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess(["status"], code, "", said)


@pytest.mark.parametrize(
    ("code", "said"), [(-9, "was ended by signal 9"), (0, "ended with exit code 0"), (1, "ended with exit code 1")]
)
def test_a_command_of_another_user_that_says_nothing_is_reported_with_its_end(code: int, said: str) -> None:
    for nothing in ("", "\n", "multibinder-haproxy: \n"):
        assert said in str(failure_of(ended(code, nothing)))


@pytest.mark.parametrize(("code", "kind"), [(1, LaunchError), (3, NotRunning), (4, NoSuchInstance), (5, NotAnswering)])
def test_a_failure_of_another_users_command_keeps_its_meaning(code: int, kind: type[LaunchError]) -> None:
    assert type(failure_of(ended(code, "multibinder-haproxy: it is so\n"))) is kind


def test_further_lines_of_another_users_message_do_not_look_like_ours() -> None:
    error = failure_of(ended(1, "multibinder-haproxy: first\nmultibinder-haproxy: web: reloaded\n"))
    assert str(error) == "first\n  multibinder-haproxy: web: reloaded"
