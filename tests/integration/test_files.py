"""Files of the binder have the right mode and owner from the start, and it trusts no file of another user."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from multibinder import Client
from tests.conftest import Meet, StartBinder
from tests.integration.test_control_socket import refusal
from tests.support import Binder, Stranger, multibinder, require, wait_until

NOBODY = 64001


@pytest.fixture
def stranger(meet: Meet) -> Stranger:
    return meet(NOBODY)


@pytest.fixture
def shared(stranger: Stranger, run_dir: Path) -> Path:
    """A sticky directory. Another user in its group may make files in it, but not replace files of others."""
    directory = run_dir / "tmp"
    directory.mkdir()
    os.chown(directory, 0, NOBODY)
    directory.chmod(0o1775)
    return directory


def start_in(start_binder: StartBinder, directory: Path, *options: str, **how: object) -> tuple[Binder, Path]:
    path = directory / "c"
    command = [sys.executable, "-m", "multibinder", "serve", "--socket", str(path)]
    return start_binder(*options, command=command, **how), path


def plant(stranger: Stranger, path: Path, kind: str, target: Path) -> None:
    commands = {
        "a link": ["ln", "-s", str(target), str(path)],
        "a dangling link": ["ln", "-s", str(target.with_name("nowhere")), str(path)],
        "a file": ["sh", "-c", f"umask 0; echo planted > {path}"],
        "a FIFO": ["mkfifo", "-m", "666", str(path)],
    }
    done = stranger.run(*commands[kind])
    assert done.returncode == 0, done.stderr


PLANTED = ["a link", "a dangling link", "a file", "a FIFO"]


@pytest.fixture
def precious(run_dir: Path) -> Path:
    """A file of root that must stay as it is."""
    path = run_dir / "precious"
    path.write_text("precious\n")
    path.chmod(0o600)
    return path


def assert_untouched(precious: Path) -> None:
    assert precious.read_text() == "precious\n"
    assert stat.S_IMODE(precious.stat().st_mode) == 0o600
    assert not precious.with_name("nowhere").exists()


def strace() -> str:
    program = shutil.which("strace")
    require("strace", program, "watching system calls needs strace")
    return str(program)


@pytest.mark.parametrize(
    "options", [[], ["--mode", "0660"], ["--group", "GROUP"], ["--group", "GROUP", "--mode", "0620"]]
)
def test_the_control_socket_never_has_more_than_its_final_mode(
    run_dir: Path, start_binder: StartBinder, options: list[str]
) -> None:
    require("root", os.geteuid() == 0, "only root can give a file to any group")
    log = run_dir / "strace"
    options = [option.replace("GROUP", "tty") for option in options]
    calls = "bind,listen,chmod,fchmodat,chown,fchownat,lchown,umask"
    binder, path = start_in(
        start_binder, run_dir, *options, prefix=[strace(), "-f", "-qq", "-e", f"trace={calls}", "-o", str(log)], umask=0
    )
    mode = stat.S_IMODE(path.stat().st_mode)
    text = log.read_text()
    bound = text.index(f'sun_path="{path}"')
    umasks = re.findall(r"umask\((0?[0-7]*)\)", text[:bound])
    first = 0o777 & ~int(umasks[-1], 8)
    assert first & ~mode == 0, f"made with {first:04o}, meant to be {mode:04o}"
    if "--group" in options:
        assert first & 0o077 == 0
        owned, changed = text.index("chown", bound), text.index("chmod", bound)
        assert bound < owned < changed, "the mode was widened before the group was set"
    else:
        assert first == mode
    assert text.index("listen(", bound) > max(text.rfind("chmod"), text.rfind("chown"), bound)
    # The binder is a child of strace. strace ends with it, and does not pass our signal on.
    end_traced(binder, path)


def end_traced(binder: Binder, path: Path) -> None:
    with Client(path) as client:
        os.kill(client.hello().pid, 15)
    assert binder.wait() == 0


def test_the_control_socket_never_appears_with_another_mode(run_dir: Path, start_binder: StartBinder) -> None:
    """Another process reads the mode in a busy loop."""
    path = run_dir / "c"
    watch = (
        "import os, sys\n"
        "seen = set()\n"
        "print('watching', flush=True)\n"
        "while not os.path.exists(sys.argv[2]):\n"
        "    try: seen.add(oct(os.lstat(sys.argv[1]).st_mode & 0o777))\n"
        "    except FileNotFoundError: pass\n"
        "print(sorted(seen))\n"
    )
    end = run_dir / "end"
    with subprocess.Popen(
        [sys.executable, "-c", watch, str(path), str(end)], stdout=subprocess.PIPE, text=True
    ) as watcher:
        try:
            assert watcher.stdout is not None
            assert watcher.stdout.readline() == "watching\n"
            for _ in range(3):
                binder, _ = start_in(start_binder, run_dir, "--mode", "0640", umask=0, name=f"n{time.monotonic_ns()}")
                assert binder.stop() == 0
        finally:
            end.touch()
        seen, _ = watcher.communicate(timeout=20)
    assert seen == "['0o640']\n"


def test_a_directory_that_everybody_may_write_is_refused(run_dir: Path) -> None:
    directory = run_dir / "open"
    directory.mkdir()
    directory.chmod(0o777)
    said = refusal(directory / "c")
    assert said.startswith(f"everybody may write in {directory} (mode 0777)")
    assert f"'chmod o-w {directory}', or choose a directory of root or of this user, as /run/multibinder" in said
    assert list(directory.iterdir()) == []


def test_a_directory_above_that_everybody_may_write_is_refused(run_dir: Path) -> None:
    (run_dir / "open" / "own").mkdir(parents=True)
    (run_dir / "open").chmod(0o777)
    assert f"everybody may write in {run_dir}/open" in refusal(run_dir / "open" / "own" / "c")


def test_a_directory_of_another_user_is_refused(run_dir: Path) -> None:
    require("root", os.geteuid() == 0, "only root can make a directory of another user's")
    directory = run_dir / "theirs"
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)
    said = refusal(directory / "c")
    assert said.startswith(f"{directory} belongs to uid {NOBODY}, who could replace the files that we make")
    assert "choose a directory of root or of this user, as /run/multibinder" in said


def test_a_link_of_another_user_on_the_way_is_refused(stranger: Stranger, shared: Path, run_dir: Path) -> None:
    (run_dir / "own").mkdir()
    plant(stranger, shared / "link", "a link", run_dir / "own")
    assert refusal(shared / "link" / "c").startswith(f"{shared}/link belongs to uid {NOBODY}")


def test_links_of_our_own_are_followed(run_dir: Path, start_binder: StartBinder) -> None:
    (run_dir / "own").mkdir()
    (run_dir / "up").symlink_to("own/../own")
    (run_dir / "link").symlink_to(run_dir / "up")
    binder, path = start_in(start_binder, run_dir / "link")
    with Client(path) as client:
        assert client.hello().pid == binder.pid


def test_links_in_a_circle_are_one_sentence(run_dir: Path) -> None:
    (run_dir / "one").symlink_to("two")
    (run_dir / "two").symlink_to("one")
    assert "cannot create the control socket" in refusal(run_dir / "one" / "c")


def test_a_directory_that_a_group_may_write_is_used_with_a_warning(run_dir: Path, start_binder: StartBinder) -> None:
    require("root", os.geteuid() == 0, "only root can give a directory to any group")
    directory = run_dir / "group"
    directory.mkdir()
    os.chown(directory, 0, NOBODY)
    directory.chmod(0o775)
    binder, _ = start_in(start_binder, directory)
    assert f"group {NOBODY} may write in {directory}" in binder.wait_for_log("event=directory-doubtful")


def test_a_sticky_directory_is_trusted_on_the_way_but_not_for_the_control_socket(
    run_dir: Path, start_binder: StartBinder
) -> None:
    """In the last directory, another user could make the socket or the lock before the binder does."""
    sticky = run_dir / "tmp"
    (sticky / "own").mkdir(parents=True)
    sticky.chmod(0o1777)
    assert refusal(sticky / "c").startswith(f"everybody may write in {sticky} (mode 1777)")
    binder, path = start_in(start_binder, sticky / "own")
    with Client(path) as client:
        assert client.hello().pid == binder.pid
    assert "directory-" not in binder.log_path.read_text()


@pytest.mark.parametrize("kind", PLANTED)
def test_a_lock_that_another_user_planted_is_refused_and_not_touched(
    stranger: Stranger, shared: Path, precious: Path, kind: str
) -> None:
    lock = shared / "c.lock"
    plant(stranger, lock, kind, precious)
    before = os.lstat(lock)
    done = multibinder("serve", "--socket", shared / "c")
    assert done.returncode == 1, done.stderr
    said = done.stderr.splitlines()[-1]  # after the warning about the directory
    assert str(lock) in said
    assert "remove it" in said
    assert os.path.samestat(os.lstat(lock), before)
    assert_untouched(precious)


@pytest.mark.parametrize("kind", PLANTED)
def test_a_state_file_that_another_user_planted_is_neither_believed_nor_written_through(
    stranger: Stranger, shared: Path, precious: Path, start_binder: StartBinder, host: str, kind: str
) -> None:
    plant(stranger, shared / "c.state", kind, precious)
    _, path = start_in(start_binder, shared)
    with Client(path) as client:
        assert client.list() == []
        client.bind([(host, 8000)])[0].close()
    state = shared / "c.state"
    status = os.lstat(state)
    assert stat.S_ISREG(status.st_mode)
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600)
    assert f"{host}:8000" in state.read_text()
    assert_untouched(precious)


@pytest.mark.parametrize("trusted", [True, False], ids=["ours", "another user's"])
def test_a_state_file_of_another_user_is_not_believed(
    stranger: Stranger, shared: Path, start_binder: StartBinder, host: str, trusted: bool
) -> None:
    """The case "ours" shows that the binder believes the same file when it owns the file."""
    with socket.create_server((host, 8000)) as held:
        cookie = int.from_bytes(held.getsockopt(socket.SOL_SOCKET, 57, 8), sys.byteorder)
        header = {"multibinder": 1, "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip()}
        record = {"address": f"{host}:8000", "cookie": cookie, "inode": os.fstat(held.fileno()).st_ino}
        record["claims"] = {"web:0": 1}
        state = shared / "c.state"
        state.write_text(json.dumps(header) + "\n" + json.dumps(record) + "\n")
        state.chmod(0o600)
        if not trusted:
            os.chown(state, NOBODY, NOBODY)
        binder, path = start_in(start_binder, shared)
        with Client(path) as client:
            assert [str(status.address) for status in client.list()] == ([f"{host}:8000"] if trusted else [])
        if not trusted:
            assert 'why="another user made it' in binder.wait_for_log("event=state-file-unreadable")


@pytest.mark.parametrize("kind", PLANTED)
def test_a_pid_file_that_another_user_planted_is_replaced(
    stranger: Stranger, shared: Path, precious: Path, start_binder: StartBinder, kind: str
) -> None:
    pidfile = shared / "pid"
    plant(stranger, pidfile, kind, precious)
    binder, _ = start_in(start_binder, shared, "--pidfile", str(pidfile), umask=0)
    assert stat.S_ISREG(os.lstat(pidfile).st_mode)
    assert pidfile.read_text() == f"{binder.pid}\n"
    assert stat.S_IMODE(os.lstat(pidfile).st_mode) == 0o644
    assert binder.stop() == 0
    assert not pidfile.exists()
    assert_untouched(precious)


@pytest.mark.parametrize("kind", PLANTED)
def test_a_draft_of_a_pid_file_that_another_user_planted_is_removed(
    stranger: Stranger, shared: Path, precious: Path, run_dir: Path, kind: str
) -> None:
    pidfile = shared / "pid"
    code = (
        "import os, sys; from multibinder.binder.pidfile import write_pidfile\n"
        "print(os.getpid(), flush=True); sys.stdin.readline(); write_pidfile(sys.argv[1])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(pidfile)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        plant(stranger, Path(f"{pidfile}.{writer.stdout.readline().strip()}.new"), kind, precious)
        writer.communicate("go\n", timeout=20)
        assert writer.returncode == 0
    assert pidfile.read_text() == f"{writer.pid}\n"
    assert os.lstat(pidfile).st_uid == 0
    assert [path.name for path in shared.iterdir()] == ["pid"]
    assert_untouched(precious)


@pytest.mark.parametrize("kind", ["a link", "a FIFO"])
def test_a_pid_file_that_another_user_replaced_does_not_delay_the_stop(
    run_dir: Path, precious: Path, start_binder: StartBinder, kind: str
) -> None:
    pidfile = run_dir / "pid"
    binder, _ = start_in(start_binder, run_dir, "--pidfile", str(pidfile))
    pidfile.unlink()
    pidfile.symlink_to(precious) if kind == "a link" else os.mkfifo(pidfile)
    assert binder.stop() == 0
    assert os.path.lexists(pidfile)


@pytest.mark.parametrize("kind", PLANTED)
def test_a_log_file_that_another_user_planted_is_refused(
    stranger: Stranger, shared: Path, precious: Path, run_dir: Path, kind: str
) -> None:
    log = shared / "log"
    plant(stranger, log, kind, precious)
    said = refusal(run_dir / "c", "--log-file", str(log))
    assert said.startswith(f"--log-file {log}: ")
    if kind == "a file":
        assert said.endswith(f"it belongs to uid {NOBODY}; remove it, or choose another")
        assert log.read_text() == "planted\n"
    assert_untouched(precious)


def test_a_log_file_that_cannot_be_reopened_costs_only_log_lines(
    run_dir: Path, precious: Path, start_binder: StartBinder, host: str
) -> None:
    log = run_dir / "log"
    binder, path = start_in(start_binder, run_dir, "--log-file", str(log))
    log.unlink()
    log.symlink_to(precious)  # as another user could while logrotate has moved the file
    with Client(path) as client:
        client.bind([(host, 8000)])[0].close()
        assert "log_file_lost=" in binder.wait_for_log("event=bound")  # on stderr
        log.unlink()
        client.bind([(host, 8001)])[0].close()
    assert f"event=bound address={host}:8001" in log.read_text()
    assert_untouched(precious)


def test_terminal_escapes_in_the_name_of_a_client_are_not_logged(start_binder: StartBinder, run_dir: Path) -> None:
    for number, form in enumerate(("text", "json")):
        binder = start_binder("--log-format", form, name=f"b{number}")
        rude = (
            "import socket, sys\n"
            "open('/proc/self/comm', 'wb').write('\\x1b[2J\\x9b\\u2028x'.encode())\n"
            "with socket.socket(socket.AF_UNIX) as client:\n"
            "    client.connect(sys.argv[1]); client.sendall(b'nonsense')\n"
            "    while client.recv(4096): pass\n"
        )
        subprocess.run([sys.executable, "-c", rude, str(binder.socket_path)], check=True, timeout=20)
        line = binder.wait_for_log("protocol-error")
        assert "?[2J??x" in line
        assert line.isprintable()


def test_no_file_can_be_written_by_others_under_any_umask(run_dir: Path, start_binder: StartBinder, host: str) -> None:
    directory = run_dir / "own"
    directory.mkdir(mode=0o755)
    log = directory / "log"
    binder, path = start_in(
        start_binder, directory, "--pidfile", str(directory / "pid"), "--log-file", str(log), umask=0
    )
    with Client(path) as client:
        client.bind([(host, 8000)])[0].close()
    modes = {entry.name: stat.S_IMODE(entry.lstat().st_mode) for entry in directory.iterdir()}
    assert modes == {"c": 0o600, "c.lock": 0o600, "c.state": 0o600, "pid": 0o644, "log": 0o640}
    assert binder.stop() == 0


def test_a_link_that_replaced_the_control_socket_before_its_group_was_set_is_not_followed(
    run_dir: Path, precious: Path
) -> None:
    """A member of a group that may write in the directory could try this."""
    code = (
        "import os, sys\n"
        "from multibinder import MultibinderError\n"
        "from multibinder.binder import control_socket\n"
        "from multibinder.kernel import files\n"
        "path, target = sys.argv[1:]\n"
        "bind = files.bind_socket\n"
        "def swapped(*args):\n"
        "    bind(*args); os.unlink(path); os.symlink(target, path)\n"
        "files.bind_socket = swapped\n"
        "try: control_socket.open_control_socket(path, 0o666, 'tty')\n"
        "except MultibinderError as error: print(error)\n"
    )
    require("root", os.geteuid() == 0, "only root can give a file to any group")
    said = subprocess.run(
        [sys.executable, "-c", code, str(run_dir / "c"), str(precious)],
        check=True, capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert "another process has replaced the control socket" in said.stdout
    assert_untouched(precious)
    assert precious.stat().st_gid == 0
    wait_until(lambda: not (run_dir / "c.lock").exists(), "the lock is removed")
