"""Names of users in a policy are looked up without stopping the binder, however long the directory service takes."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from multibinder import Client
from multibinder.binder import policy_source
from multibinder.binder.settings import Settings
from multibinder.cli.invocation import Invocation
from tests.conftest import StartBinder
from tests.support import Binder, wait_until

#: A binder whose look-ups of users wait until the FIFO has a writer, as one of a directory that does not answer.
_PROGRAM = """
import pwd
from multibinder.binder.settings import Timings
from multibinder.cli import binder_main
look_up = pwd.getpwnam
def getpwnam(name):
    with open({fifo!r}) as fifo:
        fifo.read()
    return look_up("root")
pwd.getpwnam = getpwnam
binder_main.main(Timings(policy_s={policy_s}))
"""
_RULE = '[[rule]]\nuid = {}\nallow = "*"\n'

StartSlow = Callable[[float], Binder]


@pytest.fixture
def policy(run_dir: Path) -> Path:
    path = run_dir / "policy.toml"
    path.write_text(_RULE.format(0))
    return path


@pytest.fixture
def fifo(run_dir: Path) -> Path:
    path = run_dir / "directory"
    os.mkfifo(path)
    return path


@pytest.fixture
def start_slow(run_dir: Path, policy: Path, fifo: Path, start_binder: StartBinder) -> StartSlow:
    def start(policy_s: float) -> Binder:
        argument = msgspec.json.encode(Invocation(Settings(str(run_dir / "mb.sock"), policy=str(policy)))).decode()
        program = _PROGRAM.format(fifo=str(fifo), policy_s=policy_s)
        return start_binder(command=[sys.executable, "-P", "-c", program, argument], name="mb")

    return start


def opened(fifo: Path) -> int | None:
    """Open the FIFO for writing if a process reads from it. The caller owns the descriptor."""
    with contextlib.suppress(OSError):
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    return None


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_requests_are_answered_while_the_names_of_a_policy_are_looked_up(
    start_slow: StartSlow, policy: Path, fifo: Path, host: str
) -> None:
    binder = start_slow(60)
    policy.write_text(_RULE.format('"someone"') + _RULE.format(0))
    binder.send_signal(signal.SIGHUP)
    directory = wait_until(lambda: opened(fifo), "a name is looked up", log=binder.log)
    with Client(binder.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
    assert "policy-reloaded" not in binder.log_path.read_text()
    # The file is read again after this one: it has changed since.
    binder.send_signal(signal.SIGHUP)
    policy.write_text(_RULE.format(0) * 3)
    os.close(directory)
    binder.wait_for_log("rules=2")
    binder.wait_for_log("rules=3")


def test_a_policy_whose_names_cannot_be_looked_up_in_time_changes_nothing(
    start_slow: StartSlow, policy: Path, host: str
) -> None:
    binder = start_slow(0.2)
    policy.write_text(_RULE.format('"someone"'))
    binder.send_signal(signal.SIGHUP)
    line = binder.wait_for_log("event=policy-broken")
    assert "took too long" in line
    assert "previous policy stays in force" in line
    wait_until(lambda: not children(binder.pid), "the process that looked the names up is gone", log=binder.log)
    with Client(binder.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
    policy.write_text(_RULE.format(0) * 3)
    binder.send_signal(signal.SIGHUP)
    binder.wait_for_log("rules=3")


def test_a_stop_does_not_wait_for_names(start_slow: StartSlow, policy: Path) -> None:
    binder = start_slow(60)
    policy.write_text(_RULE.format('"someone"'))
    binder.send_signal(signal.SIGHUP)
    [child] = wait_until(lambda: children(binder.pid), "a process looks the names up", log=binder.log)
    assert binder.stop() == 0
    assert not Path(f"/proc/{child}").exists()


def test_a_start_with_listeners_does_not_wait_for_names_for_ever(
    policy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    policy.write_text(_RULE.format('"someone"'))
    monkeypatch.setattr(pwd, "getpwnam", lambda name: time.sleep(600))
    monkeypatch.setattr(policy_source, "_FIRST_TIMEOUT_S", 0.1)
    loaded = policy_source.load_first_policy(str(policy), had_policy=True, has_listeners=True)
    assert loaded is not None
    assert loaded.rules == ()
    assert caplog.records[-1].msg == "policy-broken"
