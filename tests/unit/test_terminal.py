"""What other users choose reaches no terminal raw."""

from __future__ import annotations

import ast
import json
import os
import sys
import time
from pathlib import Path

import pytest

from multibinder import HolderStatus, OwnerStatus
from multibinder.cli.status_report import Report, Row
from multibinder.cli.status_text import lines_of
from multibinder.kernel.terminal import printable_json, printable_lines
from multibinder.launch.owner import Owner
from multibinder.launch.run_as import run_as

ROOT = Path(__file__).parents[2]
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


#: The modules that print: two by ``printable_lines``, three by rich with ``printable`` fields.
PRINTING = {"say.py", "output.py"}
RICH = {"adopt.py", "doctor.py", "listeners.py", "status_live.py"}
#: binder_main.py prints to the binder that rehearses it, run_config.py to the process of 'run'.
FOR_PROGRAMS = {"binder_main.py", "run_config.py"}


def test_what_people_read_is_printed_in_one_place() -> None:
    found = []
    for path in [*(ROOT / "multibinder/cli").rglob("*.py"), *(ROOT / "wrappers/haproxy").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            prints = called in {"print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write"}
            if (prints and path.name not in PRINTING | FOR_PROGRAMS) or (called == "Console" and path.name not in RICH):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {called}")
    assert found == []


def test_a_newline_in_a_field_forges_no_line() -> None:
    row = Row(
        address="127.0.0.1:80\nserving  192.0.2.9:80",
        name="web\tx",
        owners=[OwnerStatus("me\r\nforged", 0)],
        holders=[HolderStatus(7, "sh\nforged", "holding")],
        state="serving",
        handoffs=1,
        created=0.0,
        cookie=1,
        inode=1,
        orphan_since=None,
        orphan_ttl_s=None,
        stalled_since=None,
        repairs=0,
        repaired_at=None,
        kept=True,
        holders_complete=True,
        queue=0,
        limit=1,
        backlog_requested=None,
        v6only=None,
        drops=0,
        drops_per_s=0.0,
    )
    binder = {"version": "1\n2", "pid": 1, "started": 0.0, "keeper": "guard", "kept": 1, "kept_limit": 9}
    for width in (40, 400):
        lines = lines_of(Report(1, 1.0, (), binder, (row,)), width, colour=False)
        assert not any(control in line for line in lines for control in "\n\t\r")
        assert not any(line.lstrip().startswith("forged") for line in lines)


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
