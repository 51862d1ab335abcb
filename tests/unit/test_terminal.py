"""What other users choose reaches no terminal raw."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest

from multibinder.kernel.terminal import printable_json, printable_lines
from multibinder.launch.owner import Owner, run_as

#: The title of a window, the same by a C1 control, an override of the writing direction, a carriage return.
HOSTILE = "a\x1b]0;owned\x07b\x9d0;owned\x9cc\u202ed\re"


def test_no_character_that_a_terminal_obeys_is_printed() -> None:
    shown = printable_lines(f"{HOSTILE}\n\t[bold]x[/bold] é")
    assert shown == "a?]0;owned?b?0;owned?c?d?e\n\t[bold]x[/bold] é"


def test_json_is_exact_and_safe_for_a_terminal() -> None:
    text = json.dumps({"name": HOSTILE, "other": "é\U000e0001"}, ensure_ascii=False, indent=2)
    shown = printable_json(text)
    assert json.loads(shown) == json.loads(text)
    assert all(line.isprintable() for line in shown.split("\n"))
    assert "é" in shown


def me() -> Owner:
    return Owner(os.geteuid(), os.getegid())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the groups of a child")
@pytest.mark.parametrize(
    "program",
    [
        "import time; time.sleep(600)",
        # A child in a session of its own keeps the pipes open.
        "import os, time; os.fork() or (os.setsid(), time.sleep(5))",
    ],
    ids=["hangs", "leaves a child"],
)
def test_root_does_not_wait_for_another_users_command_without_a_limit(program: str) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        run_as(me(), [sys.executable, "-c", program], {}, 1.0)
    assert time.monotonic() - began < 4


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the groups of a child")
def test_a_command_of_another_user_that_prints_without_end_is_stopped() -> None:
    program = "while True: print('x' * 100000)"
    with pytest.raises(TimeoutError):
        run_as(me(), [sys.executable, "-c", program], {}, 30.0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the groups of a child")
def test_output_and_exit_code_of_another_users_command_are_returned() -> None:
    done = run_as(me(), [sys.executable, "-c", "import sys; print('out'); sys.exit('err')"], {}, 30.0)
    assert (done.returncode, done.stdout, done.stderr) == (1, "out\n", "err\n")
