"""The control socket has one binder for each path, and the binder deletes no file that is not its own."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from multibinder import Client
from tests.conftest import StartBinder
from tests.support import (
    PROGRAM,
    Binder,
    as_user,
    clean_environment,
    multibinder,
    require,
    wait_until,
    without_privileges,
)
from tests.support.installation import for_everybody, interpreter_for_everybody


def refusal(path: Path | str, *options: str, prefix: Sequence[str] = (), program: Sequence[str] = PROGRAM) -> str:
    """Return the one sentence of a binder that cannot start. Its exit status must be 1."""
    done = multibinder("serve", "--socket", path, *options, prefix=prefix, program=program)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("multibinder: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("multibinder: ").rstrip("\n")


def leave_a_stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def test_a_second_binder_refuses_and_names_the_first(binder: Binder) -> None:
    said = refusal(binder.socket_path)
    assert said == (
        f"{binder.socket_path} is served by process {binder.pid} already; stop it first, or choose another --socket"
    )
    with Client(binder.socket_path) as client:
        assert client.hello().pid == binder.pid


def test_when_binders_start_together_one_serves_and_the_others_name_it(run_dir: Path) -> None:
    path = run_dir / "race.sock"
    with contextlib.ExitStack() as running:
        racers = [
            running.enter_context(
                Binder(run_dir, name=f"r{number}", command=[sys.executable, "-m", "multibinder", str(path)])
            )
            for number in range(4)
        ]
        wait_until(
            lambda: sum(racer.process.poll() is not None for racer in racers) == 3, "three of the binders have given up"
        )
        [winner] = [racer for racer in racers if racer.process.poll() is None]
        winner.wait_until_ready()
        with Client(path) as client:
            assert client.hello().pid == winner.pid
        for loser in racers:
            if loser is not winner:
                assert loser.process.returncode == 1
                # A binder that started before the winner had written its PID cannot name the winner.
                assert (
                    f"is served by process {winner.pid} already" in loser.log()
                    or "is served by another process already" in loser.log()
                )


def test_a_path_that_another_program_serves_is_left_alone_and_its_process_named(run_dir: Path) -> None:
    path = run_dir / "other.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert f"is served by process {os.getpid()} already" in refusal(path)
        assert path.is_socket()


def test_a_stale_socket_file_is_replaced(run_dir: Path, start_binder: StartBinder) -> None:
    leave_a_stale_socket(run_dir / "mb.sock")
    binder = start_binder()
    with Client(binder.socket_path) as client:
        assert client.hello().pid == binder.pid


def test_a_binder_starts_where_another_was_killed(run_dir: Path, start_binder: StartBinder) -> None:
    with Binder(run_dir) as killed:
        killed.wait_until_ready()
        killed.process.kill()
        killed.wait()
    (run_dir / "mb.notify").unlink()
    assert killed.socket_path.is_socket()
    binder = start_binder()
    with Client(binder.socket_path) as client:
        assert client.hello().pid == binder.pid


def a_file(path: Path) -> None:
    path.write_text("precious")


def a_directory(path: Path) -> None:
    path.mkdir()


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


def a_link_to_a_file(path: Path) -> None:
    a_file(path.with_suffix(".precious"))
    path.symlink_to(path.with_suffix(".precious"))


def a_link_to_a_stale_socket(path: Path) -> None:
    leave_a_stale_socket(path.with_suffix(".stale"))
    path.symlink_to(path.with_suffix(".stale"))


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    "make", [a_file, a_directory, a_link_to_nothing, a_link_to_a_file, a_link_to_a_stale_socket, a_fifo]
)
def test_a_file_that_is_not_a_socket_is_never_deleted(run_dir: Path, make: Callable[[Path], None]) -> None:
    path = run_dir / "mb.sock"
    make(path)
    before = {entry.name: entry.lstat().st_ino for entry in run_dir.iterdir()}
    assert refusal(path) == f"{path} exists and is not a socket; it is left alone. Choose another --socket"
    assert {entry.name: entry.lstat().st_ino for entry in run_dir.iterdir()} == before


def test_a_file_that_replaced_the_control_socket_is_not_deleted_at_the_stop(binder: Binder) -> None:
    binder.socket_path.unlink()
    binder.socket_path.write_text("precious")
    assert binder.stop() == 0
    assert binder.socket_path.read_text() == "precious"


def test_the_longest_path_that_fits_is_served(run_dir: Path, start_binder: StartBinder) -> None:
    path = run_dir / ("x" * (107 - len(os.fsencode(run_dir)) - 1))
    binder = start_binder(command=[sys.executable, "-m", "multibinder", str(path)])
    with Client(path) as client:
        assert client.hello().pid == binder.pid


def test_a_path_that_is_too_long_is_refused_with_both_lengths(run_dir: Path) -> None:
    path = run_dir / ("x" * (108 - len(os.fsencode(run_dir)) - 1))
    assert refusal(path) == (
        f"{path}: the path has 108 bytes, a Unix socket's may have 107 (sun_path, unix(7)); choose a shorter one"
    )
    assert list(run_dir.iterdir()) == []


def test_the_length_of_a_path_counts_bytes_not_characters(run_dir: Path) -> None:
    path = run_dir / ("ü" * 50)
    assert f"the path has {len(os.fsencode(path))} bytes" in refusal(path)


def test_a_missing_directory_is_named(run_dir: Path) -> None:
    path = run_dir / "missing" / "mb.sock"
    assert refusal(path) == (
        f"{path}: cannot create the control socket: the directory {path.parent} does not exist; create it first"
    )


def test_a_directory_without_write_permission_is_named(run_dir: Path) -> None:
    directory = run_dir / "locked"
    directory.mkdir(mode=0o500)
    path = directory / "mb.sock"
    assert refusal(path, prefix=without_privileges(), program=for_everybody().program) == (
        f"{path}: cannot create the control socket: no permission to write in {directory}; "
        "run as root, or choose another --socket"
    )


def test_a_file_in_place_of_the_directory_is_reported_in_one_sentence(run_dir: Path) -> None:
    a_file(run_dir / "file")
    assert "cannot create the control socket: Not a directory" in refusal(run_dir / "file" / "mb.sock")


def test_an_unknown_group_is_named(run_dir: Path) -> None:
    path = run_dir / "mb.sock"
    said = refusal(path, "--group", "no-such-group")
    assert said == "--group no-such-group: there is no such group (see 'getent group')"
    assert not path.exists()


def test_a_group_that_the_binder_may_not_assign_is_refused_and_leaves_no_file(run_dir: Path) -> None:
    mine = {os.getegid(), *os.getgroups()}
    if os.geteuid() == 0:
        mine.add(0)
    foreign = next(group.gr_name for group in grp.getgrall() if group.gr_gid not in mine)
    path = run_dir / "mb.sock"
    said = refusal(path, "--group", foreign, prefix=without_privileges(), program=for_everybody().program)
    assert "cannot give the control socket to group" in said
    assert list(run_dir.iterdir()) == []


def mode_and_group(path: Path) -> tuple[int, int]:
    status = path.stat()
    return stat.S_IMODE(status.st_mode), status.st_gid


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
@pytest.mark.parametrize(("options", "mode"), [([], 0o600), (["--mode", "0666"], 0o666), (["--mode", "640"], 0o640)])
def test_the_mode_is_the_requested_one_under_any_umask(
    start_binder: StartBinder, umask: int, options: list[str], mode: int
) -> None:
    if umask == 0o777:
        require("root", os.geteuid() == 0, "with umask 0777 only root can read its own new files")
    binder = start_binder(*options, umask=umask)
    assert mode_and_group(binder.socket_path)[0] == mode


@pytest.mark.parametrize(("options", "mode"), [([], 0o660), (["--mode", "0620"], 0o620)])
def test_the_named_group_may_connect(start_binder: StartBinder, options: list[str], mode: int) -> None:
    if os.geteuid() == 0:
        group = next(group for group in grp.getgrall() if group.gr_gid != os.getegid())
    else:
        group = grp.getgrgid(os.getegid())
    binder = start_binder("--group", group.gr_name, *options)
    assert mode_and_group(binder.socket_path) == (mode, group.gr_gid)


def test_another_user_may_not_connect(run_dir: Path, start_binder: StartBinder) -> None:
    run_dir.chmod(0o755)
    binder = start_binder()
    script = f"import socket; socket.socket(socket.AF_UNIX).connect({str(binder.socket_path)!r})"
    command = [*as_user(65534), str(interpreter_for_everybody()), "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "PermissionError" in done.stderr


def test_the_control_socket_of_a_binder_that_does_not_listen_yet_is_not_replaced(run_dir: Path) -> None:
    leave_a_stale_socket(run_dir / "mb.sock")  # the state of a control socket between its bind() and its listen()
    with (run_dir / "mb.sock.lock").open("w") as lock:
        lock.write("4711\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "is served by process 4711 already" in refusal(run_dir / "mb.sock")
    assert (run_dir / "mb.sock").is_socket()


def test_the_lock_names_the_binder(binder: Binder) -> None:
    assert Path(f"{binder.socket_path}.lock").read_text() == f"{binder.pid}\n"


def test_a_lock_that_is_a_link_is_not_followed(run_dir: Path) -> None:
    a_file(run_dir / "precious")
    (run_dir / "mb.sock.lock").symlink_to(run_dir / "precious")
    refusal(run_dir / "mb.sock")
    assert (run_dir / "precious").read_text() == "precious"


def test_a_relative_path_is_served(run_dir: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "multibinder", "serve", "--socket", "here.sock"],
        cwd=run_dir,
        env=clean_environment(),
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until((run_dir / "here.sock").is_socket, "the binder serves at the relative path")
    finally:
        process.terminate()
        process.wait(20)
