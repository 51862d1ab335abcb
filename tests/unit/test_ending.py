from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from multibinder_haproxy.ending import UNKNOWN, ending_of, parse_ending, recorded_ending

from multibinder.kernel.pidfd import wait_status_of


@pytest.mark.parametrize(
    "line", ["killed TERM", "killed KILL", "killed 15", "exited 143", "exited 130", "exited 137", "exited 0"]
)
def test_a_process_that_was_told_to_end_says_nothing_about_its_configuration(line: str) -> None:
    assert parse_ending(line).was_told


@pytest.mark.parametrize(
    "line", ["exited 1", "dumped SEGV", "killed 11", "killed ABRT", "exited 139", "", "killed NOSUCH"]
)
def test_a_process_that_ended_by_itself_is_no_interrupted_start(line: str) -> None:
    assert not parse_ending(line).was_told


def test_the_ending_is_told_in_words() -> None:
    assert parse_ending("exited 1\n").words == "ended with exit code 1"
    assert parse_ending("killed KILL").words == "was ended by SIGKILL"
    assert parse_ending("nonsense") == UNKNOWN


def test_a_recorded_ending_that_is_older_than_the_start_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "exit").write_text("killed TERM\n")
    written = (tmp_path / "exit").stat().st_mtime
    assert recorded_ending(str(tmp_path), written - 1).was_told
    assert recorded_ending(str(tmp_path), written + 1) == UNKNOWN


def test_a_pidfd_tells_how_its_process_ended_before_and_after_its_parent_asked() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(3)
    os.close(reader)
    pidfd = os.pidfd_open(pid)
    try:
        assert wait_status_of(pidfd) is None
        os.close(writer)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert wait_status_of(pidfd) == 3 << 8
        os.waitpid(pid, 0)
        assert ending_of(pidfd).words == "ended with exit code 3"
    finally:
        os.close(pidfd)


def test_a_pidfd_tells_which_signal_ended_its_process() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        ending = ending_of(pidfd)
        assert ending.was_told
        assert ending.words == "was ended by SIGKILL"
    finally:
        os.close(pidfd)
