"""When the control socket's path or its lock is removed, the binder serves the path again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from multibinder import Client
from multibinder.binder.settings import Settings
from multibinder.cli.invocation import Invocation
from tests.support import PROGRAM, Binder, clean_environment, serving_pid, wait_until

#: A binder that looks more often than every 15 s.
_HASTY = """
from multibinder.binder.settings import Timings
from multibinder.cli import binder_main
binder_main.main(Timings(repair_every_s=0.1))
"""


def hasty(directory: Path, name: str = "mb", socket_name: str = "mb.sock") -> Binder:
    path = directory / socket_name
    invocation = msgspec.json.encode(Invocation(Settings(str(path)))).decode()
    binder = Binder(directory, name=name, command=[sys.executable, "-c", _HASTY, invocation])
    binder.socket_path = path
    return binder


@pytest.fixture
def looking(run_dir: Path) -> Iterator[Binder]:
    with hasty(run_dir) as binder:
        yield binder.wait_until_ready()


def remove(*names: str) -> Callable[[Path], None]:
    def remove_them(path: Path) -> None:
        for name in names:
            os.unlink(f"{path}{name}")

    return remove_them


def replace_by_a_dead_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


REMOVALS = pytest.mark.parametrize(
    "remove_it",
    [remove(""), remove(".lock"), remove("", ".lock"), remove("", ".lock", ".state"), replace_by_a_dead_socket],
    ids=["path", "lock", "both", "all", "a dead socket instead"],
)


def is_served_again(path: Path) -> None:
    def complete() -> bool:
        return path.is_socket() and Path(f"{path}.lock").exists() and Path(f"{path}.state").exists()

    wait_until(complete, "the path, its lock and the state file are there again")


@REMOVALS
def test_a_removed_path_or_lock_is_noticed_and_served_again(
    looking: Binder, host: str, remove_it: Callable[[Path], None]
) -> None:
    path = looking.socket_path
    with Client(path) as connected:
        connected.bind([(host, 8000)])[0].close()
        remove_it(path)
        looking.wait_for_log("event=control-socket-gone")
        is_served_again(path)
        assert serving_pid(path) == looking.pid
        assert connected.hello().pid == looking.pid  # who was connected goes on
        done = subprocess.run([*PROGRAM, "serve", "--socket", str(path)], capture_output=True, text=True, check=False)
        assert f"is served by process {looking.pid} already" in done.stderr
        connected.upgrade()
    with Client(path) as client:
        assert client.hello().pid == looking.pid
        assert len(client.list()) == 1
    assert looking.stop() == 0
    assert not path.exists()
    assert not Path(f"{path}.lock").exists()


@REMOVALS
def test_a_binder_that_its_guard_starts_again_serves_a_removed_path(
    run_dir: Path, host: str, remove_it: Callable[[Path], None]
) -> None:
    with Binder(run_dir, "--guard") as guard:
        path = guard.wait_until_ready().socket_path
        for _ in range(2):
            first = serving_pid(path)
            with Client(path) as client:
                client.bind([(host, 8000)])[0].close()
            remove_it(path)
            os.kill(first, signal.SIGKILL)
            second = serving_pid(path, not_=first)
            with Client(path) as client:
                assert [status.address for status in client.list()] == [f"{host}:8000"]
            assert Path(f"{path}.lock").read_text() == f"{second}\n"


def test_a_client_in_the_queue_of_the_removed_socket_is_served(looking: Binder) -> None:
    path = looking.socket_path
    looking.suspend()
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(path))
        path.unlink()
        looking.resume()
        waiting.settimeout(20)
        waiting.sendall(b'{"jsonrpc":"2.0","id":1,"method":"hello","params":[]}\n')
        assert b'"result"' in waiting.recv(65536)


def test_a_file_or_another_binder_in_its_place_is_left_alone_until_it_is_gone(looking: Binder, run_dir: Path) -> None:
    path = looking.socket_path
    path.unlink()
    os.unlink(f"{path}.lock")
    looking.suspend()
    with Binder(run_dir, name="other", command=[*PROGRAM, "serve", "--socket", str(path)]) as other:
        other.wait_until_ready()
        looking.resume()
        assert f"is served by process {other.pid} already" in looking.wait_for_log("event=control-socket-lost")
        assert serving_pid(path) == other.pid
        other.process.kill()
        other.process.wait()
        assert serving_pid(path) == looking.pid
        with contextlib.suppress(AssertionError):
            other.stop()
            other.process.returncode = 0
    path.unlink()
    path.write_text("precious")
    wait_until(lambda: looking.log_path.read_text().count("event=control-socket-lost") == 2, "it is said once more")
    assert path.read_text() == "precious"
    path.unlink()
    assert serving_pid(path) == looking.pid


def test_a_removed_directory_is_served_again_when_it_is_there_again(run_dir: Path) -> None:
    directory = run_dir / "d"
    directory.mkdir(0o700)
    with hasty(run_dir, socket_name="d/mb.sock") as binder:
        binder.wait_until_ready()
        shutil.rmtree(directory)
        assert "create it first" in binder.wait_for_log("event=control-socket-lost")
        directory.mkdir(0o700)
        assert serving_pid(binder.socket_path) == binder.pid


def kept_socket(path: Path, mode: int) -> tuple[socket.socket, int]:
    """Return what a keeper has of a binder that was killed: the listening socket, and the lock."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    path.chmod(mode)
    sock.listen(16)
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return sock, lock


PASS_ON = (
    "import os, sys; names, *numbers = sys.argv[1].split(' ');"
    "[os.dup2(int(number), 10 + at) for at, number in enumerate(numbers)];"
    "[os.dup2(10 + at, 3 + at) for at in range(len(numbers))];"
    "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(numbers)), LISTEN_FDNAMES=names);"
    "os.execv(sys.argv[2], sys.argv[2:])"
)


def binder_with(
    run_dir: Path, path: Path, names: str, descriptors: list[int], *options: str
) -> subprocess.Popen[bytes]:
    given = " ".join([names, *map(str, descriptors)])
    command = [sys.executable, "-c", PASS_ON, given, *PROGRAM, "serve", "--socket", str(path), *options]
    with (run_dir / "log").open("ab") as log:
        return subprocess.Popen(command, env=clean_environment(), pass_fds=descriptors, stderr=log)


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize(("was", "becomes"), [(0o666, 0o600), (0o600, 0o666), (0o600, 0o600)])
def test_the_mode_holds_on_a_kept_control_socket(run_dir: Path, was: int, becomes: int) -> None:
    path = run_dir / "mb.sock"
    sock, lock = kept_socket(path, was)
    with sock, ended(binder_with(run_dir, path, "control:lock", [sock.fileno(), lock], "--mode", f"{becomes:o}")) as _:
        serving_pid(path)
        assert stat.S_IMODE(path.stat().st_mode) == becomes
    os.close(lock)


def test_the_mode_of_a_socket_units_socket_is_the_units(run_dir: Path) -> None:
    path = run_dir / "mb.sock"
    sock, lock = kept_socket(path, 0o660)
    os.unlink(f"{path}.lock")
    with sock, ended(binder_with(run_dir, path, "control", [sock.fileno()], "--mode", "600")):
        serving_pid(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert path.is_socket()
    os.close(lock)


def test_an_inherited_socket_with_another_path_is_said_and_served(run_dir: Path) -> None:
    path = run_dir / "unit.sock"
    sock, lock = kept_socket(path, 0o600)
    os.unlink(f"{path}.lock")
    with sock, ended(binder_with(run_dir, run_dir / "flag.sock", "control", [sock.fileno()])):
        serving_pid(path)
        assert f"socket={run_dir / 'flag.sock'} serves={path}" in (run_dir / "log").read_text()
    os.close(lock)


@pytest.mark.parametrize("gone", [(""), (".lock"), ("", ".lock")])
def test_a_kept_lock_whose_other_copies_stay_open_stops_no_start(run_dir: Path, gone: tuple[str, ...]) -> None:
    """The keeper has copies of both, which hold the lock and listen."""
    path = run_dir / "mb.sock"
    sock, lock = kept_socket(path, 0o600)
    for name in gone if isinstance(gone, tuple) else (gone,):
        os.unlink(f"{path}{name}")
    with sock, ended(binder := binder_with(run_dir, path, "control:lock", [sock.fileno(), lock])):
        assert serving_pid(path) == binder.pid
        assert Path(f"{path}.lock").read_text() == f"{binder.pid}\n"
    os.close(lock)


def test_a_relative_path_is_served_and_told_as_the_absolute_one(run_dir: Path) -> None:
    with (run_dir / "log").open("ab") as log:
        process = subprocess.Popen(
            [*PROGRAM, "serve", "--socket", "./x.sock"], cwd=run_dir, env=clean_environment(), stderr=log
        )
    with ended(process):
        assert serving_pid(run_dir / "x.sock") == process.pid
        assert f"event=serving socket={run_dir}/x.sock" in (run_dir / "log").read_text()
