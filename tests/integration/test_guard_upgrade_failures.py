"""An installation that breaks between the rehearsal of a new guard and its start costs no listener, and no guard."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import Client
from tests.support import Binder, can_connect, children, identities, require, serving_pid, wait_until
from tests.support.staged_code import StagedCode

#: What a rehearsal does when it has said that the new guard can start: the worst moment.
_AT_ITS_END = """
import atexit
if "--rehearse" in sys.argv:
    atexit.register(lambda: {action})
"""
_HALF_REPLACED = "half of it was replaced"


class Installation(StagedCode):
    """Code of a guard that breaks at the end of the rehearsal of the guard's upgrade."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.broken_module = directory / "msgspec.py"
        self.away = directory / "python-away"

    def at_the_end_of_the_rehearsal(self, action: str) -> None:
        self._module.write_text("import os, sys, signal, time\n" + _AT_ITS_END.format(action=action))

    def breaks_the_package(self) -> None:
        text = f"raise ImportError({_HALF_REPLACED!r})\n"
        self.at_the_end_of_the_rehearsal(f"open({str(self.broken_module)!r}, 'w').write({text!r})")

    def loses_the_interpreter(self) -> None:
        self.at_the_end_of_the_rehearsal(f"os.rename({str(self.python)!r}, {str(self.away)!r})")

    def mend(self) -> None:
        super().mend()
        self.broken_module.unlink(missing_ok=True)
        if self.away.is_symlink():
            self.away.rename(self.python)


@pytest.fixture
def code(run_dir: Path) -> Installation:
    return Installation(run_dir / "code")


@pytest.fixture
def guard(run_dir: Path, code: Installation) -> Iterator[Binder]:
    with Binder(run_dir, "--guard", program=code.program, environment=code.environment) as guard:
        guard.wait_until_ready()
        yield guard
        code.mend()


def bind(guard: Binder, address: tuple[str, int]) -> None:
    with Client(guard.socket_path) as client:
        client.bind([address], owner="web")[0].close()


def kill_binder(guard: Binder) -> int:
    pid = serving_pid(guard.socket_path)
    os.kill(pid, signal.SIGKILL)
    return pid


def test_a_package_that_breaks_between_rehearsal_and_start_costs_neither_guard_nor_listener(
    guard: Binder, code: Installation, host: str
) -> None:
    bind(guard, (host, 8000))
    before, binder = identities(guard.socket_path), serving_pid(guard.socket_path)
    code.breaks_the_package()
    guard.send_signal(signal.SIGUSR2)
    assert _HALF_REPLACED in guard.wait_for_log("event=guard-start-failed")
    assert serving_pid(guard.socket_path) == binder
    assert identities(guard.socket_path) == before
    # The guard still has the listeners when the binder dies, too.
    kill_binder(guard)
    assert can_connect((host, 8000))
    code.mend()
    assert serving_pid(guard.socket_path, not_=binder) in children(guard.pid)
    assert identities(guard.socket_path) == before
    assert guard.log().count("event=guard-start-failed") == 1
    # It is whole: it keeps what is bound now, restarts its binder, and upgrades.
    bind(guard, (host, 8001))
    before = identities(guard.socket_path)
    for _ in range(2):
        killed = kill_binder(guard)
        serving_pid(guard.socket_path, not_=killed)
        assert identities(guard.socket_path) == before
        upgrades = guard.log().count("event=guard-upgrading")
        guard.send_signal(signal.SIGUSR2)
        wait_until(lambda: guard.log().count("event=guard-upgrading") > upgrades, "it upgrades", log=guard.log)  # noqa: B023
    assert guard.stop() == 0


def test_an_interpreter_that_goes_between_rehearsal_and_start_costs_neither_guard_nor_listener(
    guard: Binder, code: Installation, host: str
) -> None:
    bind(guard, (host, 8000))
    before, binder = identities(guard.socket_path), serving_pid(guard.socket_path)
    descriptors = len(guard.descriptors())
    code.loses_the_interpreter()
    guard.send_signal(signal.SIGUSR2)
    guard.wait_for_log("event=guard-upgrade-failed")
    assert serving_pid(guard.socket_path) == binder
    wait_until(lambda: len(guard.descriptors()) < descriptors, "none is left over; the pipe of the start is closed")
    kill_binder(guard)
    guard.wait_for_log("event=binder-died")
    assert can_connect((host, 8000))
    code.mend()
    assert serving_pid(guard.socket_path, not_=binder) in children(guard.pid)
    assert identities(guard.socket_path) == before
    assert guard.stop() == 0


def test_an_interpreter_that_goes_while_a_new_guard_waits_for_its_package_is_waited_for(
    guard: Binder, code: Installation, host: str
) -> None:
    bind(guard, (host, 8000))
    before, binder = identities(guard.socket_path), serving_pid(guard.socket_path)
    code.breaks_the_package()
    guard.send_signal(signal.SIGUSR2)
    guard.wait_for_log("event=guard-start-failed")
    code.python.rename(code.away)
    kill_binder(guard)
    slept = times_asleep(guard.pid)
    wait_until(lambda: times_asleep(guard.pid) > slept + 1, "it has tried to execute the interpreter", log=guard.log)
    assert can_connect((host, 8000))
    code.mend()
    assert serving_pid(guard.socket_path, not_=binder) in children(guard.pid)
    assert identities(guard.socket_path) == before
    assert guard.stop() == 0


def times_asleep(pid: int) -> int:
    """Return how often a process has gone to sleep."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def test_a_new_guard_whose_start_raises_keeps_the_sockets_and_begins_again(
    guard: Binder, code: Installation, run_dir: Path, host: str
) -> None:
    bind(guard, (host, 8000))
    before = identities(guard.socket_path)
    repaired = run_dir / "repaired"
    code.runs(
        "start of the guard",
        f"if not os.path.exists({str(repaired)!r}):\n"
        "    from multibinder.binder import guard\n"
        "    guard.SignalQueue = lambda numbers: 1 // 0",
    )
    guard.send_signal(signal.SIGUSR2)
    assert "ZeroDivisionError" in guard.wait_for_log("event=guard-start-failed")
    killed = kill_binder(guard)
    assert can_connect((host, 8000))
    repaired.touch()
    serving_pid(guard.socket_path, not_=killed)
    assert identities(guard.socket_path) == before
    assert guard.stop() == 0


def test_a_guard_that_cannot_start_says_so_in_the_log_file_and_format_of_its_settings(
    run_dir: Path, code: Installation
) -> None:
    log = run_dir / "guard.json"
    options = ["--guard", "--log-file", str(log), "--log-format", "json"]
    with Binder(run_dir, *options, program=code.program, environment=code.environment) as guard:
        guard.wait_until_ready()
        code.breaks_the_package()
        guard.send_signal(signal.SIGUSR2)
        wait_until(lambda: "guard-start-failed" in log.read_text(), "the log file has it", log=log.read_text)
        [said] = [line for line in map(json.loads, log.read_text().splitlines()) if "start-failed" in line["event"]]
        assert (said["level"], said["pid"]) == ("error", guard.pid)
        assert _HALF_REPLACED in said["why"]
        code.mend()
        guard.stop()


def test_a_stop_of_a_guard_that_cannot_start_stops_the_binder(guard: Binder, code: Installation, host: str) -> None:
    bind(guard, (host, 8000))
    code.breaks_the_package()
    guard.send_signal(signal.SIGUSR2)
    guard.wait_for_log("event=guard-start-failed")
    guard.send_signal(signal.SIGTERM)
    assert guard.wait() == 0
    assert "event=stopped" in guard.log()
    assert not can_connect((host, 8000))


def test_a_guard_that_is_pid_1_outlives_a_package_that_breaks(run_dir: Path, code: Installation, host: str) -> None:
    require("root", os.geteuid() == 0, "a PID namespace needs root")
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    probe = subprocess.run([*unshare, "true"], capture_output=True, check=False)
    require("unshare", probe.returncode == 0, f"no PID namespace here: {probe.stderr!r}")
    with Binder(run_dir, "--guard", program=code.program, environment=code.environment, prefix=unshare) as outside:
        outside.wait_until_ready()
        [guard] = children(outside.pid)
        bind(outside, (host, 8000))
        before = identities(outside.socket_path)
        code.breaks_the_package()
        os.kill(guard, signal.SIGUSR2)
        outside.wait_for_log("event=guard-start-failed")
        binder = min(children(guard))  # the other one is the rehearsal, which has ended
        os.kill(binder, signal.SIGKILL)
        assert can_connect((host, 8000))
        code.mend()
        wait_until(lambda: children(guard) and binder not in children(guard), "the next binder runs", log=outside.log)
        assert identities(outside.socket_path) == before
        os.kill(guard, signal.SIGTERM)
        assert outside.wait() == 0
