"""The hooks: shell commands with a time limit, whose output and end are told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from multibinder.launch.run.hooks import Hook, HookFailed, how_it_ended, run_hook
from multibinder.launch.run.tasks import Event, Loop, sleep
from tests.run.copy_of_a_program import run
from tests.support.processes import descriptors_unchanged, is_alive
from tests.support.waiting import wait_until


class Started:
    """A process that was started for a hook."""

    def __init__(self, loop: Loop, command: list[str], descriptor: int) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor, start_new_session=True
        )
        self.pid = self.process.pid
        self.ended = Event()
        self.status = 0
        loop.start(self._wait(), "the child")

    async def _wait(self) -> None:
        while (code := self.process.poll()) is None:
            await sleep(0.005)
        self.status = -code if code < 0 else code << 8
        self.ended.set()


def execute(command: str, timeout_s: float = 10) -> list[bytes]:
    """Run a hook, and return the lines that it wrote."""
    loop = Loop(lambda name, error: pytest.fail(f"{name}: {error!r}"))
    lines: list[bytes] = []
    hook = Hook("pre-start", command, timeout_s)

    def start(command: list[str], descriptor: int) -> Started:
        return Started(loop, command, descriptor)

    with descriptors_unchanged():
        run(run_hook(hook, loop, start, "web", lines.append), loop=loop)
    return lines


def test_a_hook_that_ends_well_and_its_output() -> None:
    assert execute("echo one; echo two >&2") == [b"web[pre-start]: one\n", b"web[pre-start]: two\n"]


def test_a_hook_that_fails_is_told_with_its_last_lines() -> None:
    with pytest.raises(HookFailed, match=r"^the pre-start hook failed: it exited with code 3$") as failed:
        execute("seq 100; echo the database is away; exit 3")
    assert failed.value.output[-2:] == ["100", "the database is away"]


def test_a_hook_that_a_signal_ends() -> None:
    with pytest.raises(HookFailed, match="it was killed by SIGSEGV"):
        execute("kill -SEGV $$")


def test_a_hook_that_hangs_is_ended_with_its_children_also_if_it_ignores_sigterm(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multibinder.launch.run.hooks._GRACE_S", 0.2)
    pids = run_dir / "pids"
    with pytest.raises(HookFailed, match=r"did not end within 0\.3 s, and was killed") as failed:
        execute(f"trap '' TERM; sleep 60 & echo $! $$ > {pids}; echo waiting; wait; sleep 60", 0.3)
    assert failed.value.output == ["waiting"]
    for pid in map(int, pids.read_text().split()):
        wait_until(lambda pid=pid: not is_alive(pid), "it is ended")  # type: ignore[misc]


def test_a_process_that_a_hook_leaves_behind_is_not_waited_for(run_dir: Path) -> None:
    pid = run_dir / "pid"
    execute(f"sleep 60 & echo $! > {pid}")
    left = int(pid.read_text())
    assert is_alive(left)
    os.kill(left, 9)


def test_a_hook_that_cannot_be_started() -> None:
    loop = Loop(lambda name, error: pytest.fail(f"{name}: {error!r}"))

    def start(command: list[str], descriptor: int) -> Started:
        raise OSError(11, "Resource temporarily unavailable")

    with descriptors_unchanged(), pytest.raises(HookFailed, match="cannot be started: Resource temporarily unavail"):
        run(run_hook(Hook("pre-stop", "true", 1), loop, start, "web", print), loop=loop)


def test_a_hook_that_is_cancelled_is_ended() -> None:
    loop = Loop(lambda name, error: pytest.fail(f"{name}: {error!r}"))
    started: list[Started] = []

    def start(command: list[str], descriptor: int) -> Started:
        started.append(Started(loop, command, descriptor))
        return started[0]

    async def main() -> None:
        task = loop.start(run_hook(Hook("pre-stop", "sleep 60", 60), loop, start, "web", print), "hook")
        while not started:
            await sleep(0.01)
        task.cancel()
        await started[0].ended.wait()

    with descriptors_unchanged():
        run(main(), loop=loop)
    assert started[0].process.returncode == -9


def test_how_a_process_ended() -> None:
    assert how_it_ended(0) == "exited with code 0"
    assert how_it_ended(0x300) == "exited with code 3"
    assert how_it_ended(9) == "was killed by SIGKILL"
    assert how_it_ended(0x80 | 11) == "was killed by SIGSEGV"
    assert how_it_ended(40) == "was killed by signal 40"
