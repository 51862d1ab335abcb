"""``serve --detach`` starts a classic daemon, and its exit status tells the calling shell whether it serves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multibinder import Client
from tests.support import (
    BrokenCode,
    ask,
    clean_environment,
    descriptors,
    is_alive,
    multibinder,
    request,
    serving_pid,
    wait_until,
)

Serve = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def serve(run_dir: Path) -> Iterator[Serve]:
    """Return a function that runs ``serve --detach`` with its usual files. Its daemons are killed at the end."""

    def run(*options: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        files = ["--socket", f"{run_dir}/s", "--pidfile", f"{run_dir}/pid", "--log-file", f"{run_dir}/log"]
        return multibinder("serve", "--detach", *files, *options, environment=environment)

    yield run
    for pid in daemons(run_dir):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def daemons(directory: Path) -> list[int]:
    """Return the PIDs of guards and binders of this directory. Guards are first, so that they start no other binder."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if f'"{directory}/'.encode() in command:
                found.append((b"cli.guard" not in command, int(entry.name)))
    return [pid for _, pid in sorted(found)]


def end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(pid), f"process {pid} ends")


def in_pidfile(directory: Path) -> int:
    return int((directory / "pid").read_text())


def test_the_command_exits_with_0_when_the_daemon_serves(serve: Serve, run_dir: Path) -> None:
    done = serve()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pid = in_pidfile(run_dir)
    assert ask(run_dir / "s", request("hello"))["result"]["pid"] == pid
    assert f"event=serving socket={run_dir}/s pid={pid}" in (run_dir / "log").read_text()
    assert os.getsid(pid) not in (pid, os.getsid(0))
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    end(pid)
    assert sorted(entry.name for entry in run_dir.iterdir() if not entry.name.endswith(".state")) == ["log"]


@pytest.mark.parametrize("options", [(), ("--guard",)])
def test_relative_paths_are_resolved_in_the_directory_of_the_caller(
    run_dir: Path, serve: Serve, options: tuple[str, ...]
) -> None:
    files = ["--socket", os.path.relpath(run_dir / "s"), "--pidfile", os.path.relpath(run_dir / "pid")]
    assert multibinder("serve", "--detach", *files, *options).returncode == 0
    end(in_pidfile(run_dir))
    assert not (run_dir / "s").exists()


@pytest.mark.parametrize("options", [(), ("--guard",)])
def test_the_daemon_keeps_no_descriptor_of_its_caller(serve: Serve, run_dir: Path, options: tuple[str, ...]) -> None:
    pidfile = ["--pidfile", f"{run_dir}/pid"]
    reading, writing = os.pipe()
    done = subprocess.run(
        [sys.executable, "-m", "multibinder", "serve", "--detach", "--socket", f"{run_dir}/s", *pidfile, *options],
        pass_fds=[writing],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 0, done.stderr
    os.set_blocking(reading, False)
    assert os.read(reading, 1) == b""  # the end of the stream: no process has the pipe open for writing
    os.close(reading)
    pid = in_pidfile(run_dir)
    standard = {number: what for number, what in descriptors(pid).items() if number < 3}
    assert standard == dict.fromkeys((0, 1, 2), "/dev/null")
    end(pid)


@pytest.mark.parametrize("options", [(), ("--guard",)])
def test_a_second_daemon_on_a_served_socket_is_refused_and_the_first_is_untouched(
    serve: Serve, run_dir: Path, options: tuple[str, ...]
) -> None:
    assert serve().returncode == 0
    pid = in_pidfile(run_dir)
    before = (run_dir / "pid").stat()
    done = serve(*options)
    assert done.returncode == 1
    assert f"{run_dir}/s is served by process {pid} already" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.path.samestat((run_dir / "pid").stat(), before)
    assert in_pidfile(run_dir) == pid
    assert ask(run_dir / "s", request("hello"))["result"]["pid"] == pid
    assert daemons(run_dir) == [pid]
    end(pid)


@pytest.mark.parametrize("guard", [(), ("--guard",)])
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--group", "no-such-group"), "--group no-such-group: there is no such group"),
        (("--pidfile", "/nowhere/at/all"), "--pidfile /nowhere/at/all: cannot write it: no such file or directory"),
        (("--log-file", "/nowhere/at/all"), "--log-file /nowhere/at/all: no such file or directory"),
        (("--socket", "/nowhere/at/all"), "the directory /nowhere/at does not exist"),
    ],
)
def test_a_failure_to_start_is_reported(
    serve: Serve, run_dir: Path, guard: tuple[str, ...], options: tuple[str, ...], complaint: str
) -> None:
    done = serve(*options, *guard)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert daemons(run_dir) == []
    assert [entry.name for entry in run_dir.iterdir() if entry.name not in ("log", "s.state")] == []


@pytest.mark.parametrize("options", [(), ("--guard",)])
def test_a_pidfile_that_names_an_unrelated_live_process_is_replaced(
    serve: Serve, run_dir: Path, options: tuple[str, ...]
) -> None:
    (run_dir / "pid").write_text(f"{os.getpid()}\n")
    assert serve(*options).returncode == 0
    assert in_pidfile(run_dir) != os.getpid()
    end(in_pidfile(run_dir))
    assert not (run_dir / "pid").exists()


def test_a_pidfile_that_another_process_rewrote_is_not_removed(serve: Serve, run_dir: Path) -> None:
    assert serve().returncode == 0
    pid = in_pidfile(run_dir)
    (run_dir / "pid").write_text("1\n")
    end(pid)
    assert (run_dir / "pid").read_text() == "1\n"


def test_with_a_guard_the_pidfile_names_the_guard(serve: Serve, run_dir: Path, host: str) -> None:
    done = serve("--guard")
    assert (done.returncode, done.stderr) == (0, "")
    guard, binder = in_pidfile(run_dir), serving_pid(run_dir / "s")
    assert daemons(run_dir) == [guard, binder]
    with Client(run_dir / "s") as client:
        client.bind([(host, 8000)])[0].close()
        before = client.list()[0].cookie
    os.kill(binder, signal.SIGKILL)
    serving_pid(run_dir / "s", not_=binder)
    with Client(run_dir / "s") as client:
        assert client.list()[0].cookie == before
    assert in_pidfile(run_dir) == guard
    end(guard)
    wait_until(lambda: daemons(run_dir) == [], "the guard and the binder end")
    assert not (run_dir / "pid").exists()


def test_the_daemon_upgrades_and_keeps_its_pid(serve: Serve, run_dir: Path) -> None:
    assert serve().returncode == 0
    pid = in_pidfile(run_dir)
    with Client(run_dir / "s") as client:
        client.upgrade()
        assert client.hello().pid == pid
    assert in_pidfile(run_dir) == pid
    assert (run_dir / "log").read_text().count("event=serving") == 2
    end(pid)
    assert not (run_dir / "pid").exists()


def test_code_that_cannot_start_is_reported(serve: Serve, run_dir: Path) -> None:
    code = BrokenCode(run_dir / "code")
    code.breaks("not installed")
    done = serve(environment=code.environment)
    assert done.returncode == 1
    assert "not installed" in done.stderr
    code.mend()
