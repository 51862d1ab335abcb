"""An upgrade that fails at any step costs a sentence, and no listener."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import Client, RequestError
from multibinder.kernel.process import command_line_of
from tests.conftest import StartBinder
from tests.support import (
    PATIENCE_S,
    Binder,
    BrokenCode,
    RawClient,
    can_connect,
    children,
    identities,
    multibinder,
    request,
    require,
    serving_pid,
    wait_until,
)
from tests.support.staged_code import StagedCode


@pytest.fixture
def code(run_dir: Path) -> StagedCode:
    return StagedCode(run_dir / "code")


@pytest.fixture
def staged(start_binder: StartBinder, code: StagedCode) -> Binder:
    return start_binder(program=code.program, environment=code.environment)


def processes_of(path: Path) -> list[int]:
    """Return the PIDs of all processes that run the binder of this control socket."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                line = command_line_of(int(entry))
                if b"binder_main" in line and str(path).encode() in line:
                    found.append(int(entry))
    return found


@contextlib.contextmanager
def ended_afterwards(path: Path) -> Iterator[None]:
    """End the processes of a binder that is no child of ours any more."""
    try:
        yield
    finally:
        for pid in processes_of(path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not processes_of(path), "the binder has ended")


def upgrade(path: Path) -> subprocess.CompletedProcess[str]:
    return multibinder("upgrade", "--socket", path)


#: Another process lowers the limit of open files, the hard one too, before the new code makes its signal queue.
_LIMIT_AFTER_IMPORTS = """
import resource
from multibinder.binder import daemon
make = daemon.SignalQueue
def make_with_lower_limit(numbers):
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    return make(numbers)
daemon.SignalQueue = make_with_lower_limit
"""


@pytest.mark.parametrize(
    "statement",
    [
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "os._exit(0)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        pytest.param(_LIMIT_AFTER_IMPORTS, id="a limit that is lowered when its modules are imported"),
    ],
)
def test_new_code_that_ends_before_it_serves_costs_no_listener(
    start_binder: StartBinder, code: StagedCode, run_dir: Path, host: str, statement: str
) -> None:
    pidfile = run_dir / "mb.pid"
    binder = start_binder("--pidfile", str(pidfile), program=code.program, environment=code.environment)
    with ended_afterwards(binder.socket_path), RawClient(binder.socket_path) as idle:
        with Client(binder.socket_path) as client:
            for each in client.bind([(host, 8000), (host, 8001)], owner="web"):
                each.close()
            client.release([(host, 8001)], owner="web")
        before = identities(binder.socket_path)
        code.runs("start", statement)
        done = upgrade(binder.socket_path)
        assert done.returncode == 1
        assert "the new version ended before it served" in done.stderr
        survivor = serving_pid(binder.socket_path, not_=binder.pid)
        assert identities(binder.socket_path) == before
        assert can_connect((host, 8000))
        assert not can_connect((host, 8001))
        assert pidfile.read_text() == f"{survivor}\n"
        assert "event=upgrade-failed" in binder.wait_for_log(f"process {survivor} goes on")
        assert idle.ask(request("hello"))["result"]["pid"] == survivor
        # The old version is whole: it can be upgraded when the new one has been repaired.
        code.mend()
        done = upgrade(binder.socket_path)
        assert (done.returncode, done.stderr) == (0, "")
        wait_until(lambda: processes_of(binder.socket_path) == [survivor], "one binder is left")
        assert identities(binder.socket_path) == before


def test_nothing_is_left_of_the_lifeboat_when_the_new_version_serves(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
        client.upgrade()
        assert client.hello().upgrade_failure is None
        wait_until(lambda: processes_of(binder.socket_path) == [binder.pid], "the binder is alone", log=binder.log)
        assert client.status().listeners[0].holders in (None, [])
        assert children(binder.pid) == []
        client.release([(host, 8000)])
    with socket.create_server((host, 8000)):
        pass


def test_an_upgrade_of_pid_1_leaves_no_zombie(start_binder: StartBinder) -> None:
    if os.geteuid() != 0:
        pytest.skip("a PID namespace needs root")
    binder = start_binder(prefix=["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"])
    [pid_1] = children(binder.pid)
    try:
        with Client(binder.socket_path) as client:
            assert client.hello().pid == 1
            for _ in range(3):
                # We are in another PID namespace, from which the method upgrade is refused.
                upgrades = client.status().upgrades
                os.kill(pid_1, signal.SIGUSR1)
                wait_until(lambda: client.status().upgrades == upgrades + 1, "it is upgraded", log=binder.log)  # noqa: B023
                assert client.hello().pid == 1
            wait_until(lambda: children(pid_1) == [], "all children are reaped", log=binder.log)
    finally:
        os.kill(pid_1, signal.SIGTERM)
        binder.wait()


def test_a_version_that_does_not_know_the_lifeboat_is_not_replaced_by_it(
    staged: Binder, code: StagedCode, host: str
) -> None:
    # The version before closes a descriptor that it does not know.
    code.runs(
        "start",
        'names = os.environ["LISTEN_FDNAMES"].split(":")\nos.close(3 + names.index("lifeboat"))',
    )
    with Client(staged.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
        client.upgrade()
        assert client.hello().pid == staged.pid
        wait_until(lambda: processes_of(staged.socket_path) == [staged.pid], "the lifeboat has gone", log=staged.log)
        assert client.hello().pid == staged.pid


def test_a_stop_while_the_new_version_starts_stops_the_lifeboat_too(
    staged: Binder, code: StagedCode, run_dir: Path
) -> None:
    reached = run_dir / "reached"
    code.runs("start", f"open({str(reached)!r}, 'w').close()\ntime.sleep(600)")
    staged.send_signal(signal.SIGUSR1)
    wait_until(reached.exists, "the new version starts", log=staged.log)
    for pid in processes_of(staged.socket_path):
        if pid != staged.pid:
            os.kill(pid, signal.SIGTERM)  # as a signal to the whole group does
    wait_until(lambda: processes_of(staged.socket_path) == [staged.pid], "the lifeboat has gone", log=staged.log)
    staged.process.kill()
    staged.wait()


def test_a_failed_exec_keeps_listeners_clients_and_the_log_file(
    start_binder: StartBinder, code: StagedCode, run_dir: Path, host: str
) -> None:
    log_file = run_dir / "file.log"
    binder = start_binder("--log-file", str(log_file), program=code.program, environment=code.environment)
    with Client(binder.socket_path) as client, RawClient(binder.socket_path) as idle:
        ports = range(8000, 8020)
        for each in client.bind([(host, port) for port in ports], owner="web"):
            each.close()
        before = identities(binder.socket_path)
        descriptors = len(binder.descriptors())
        # The interpreter is gone after the rehearsal.
        code.runs("rehearsal", f"os.unlink({str(code.python)!r})")
        done = upgrade(binder.socket_path)
        assert done.returncode == 1
        assert "cannot be executed: No such file" in done.stderr
        assert identities(binder.socket_path) == before
        assert client.hello().pid == idle.ask(request("hello"))["result"]["pid"] == binder.pid
        client.release([(host, 8019)], owner="web")
        lines = log_file.read_text().splitlines()
        assert any("event=upgrade-failed" in line for line in lines)
        assert "event=released" in lines[-1]
        assert all(can_connect((host, port)) for port in ports if port != 8019)
        wait_until(lambda: len(binder.descriptors()) <= descriptors, "no descriptor is left over", log=binder.log)
        assert children(binder.pid) == []
        wait_until(lambda: processes_of(binder.socket_path) == [binder.pid], "the lifeboat has gone")
    environment = Path(f"/proc/{binder.pid}/environ").read_bytes()
    assert b"LISTEN_FDS" not in environment


def test_broken_new_code_is_refused_where_the_kernel_reaps_our_children(
    start_binder: StartBinder, run_dir: Path, host: str
) -> None:
    code = BrokenCode(run_dir / "code")
    binder = start_binder(environment=code.environment, prefix=["env", "--ignore-signal=CHLD"])
    with Client(binder.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
        code.breaks("half of it is missing")
        with pytest.raises(RequestError, match="half of it is missing"):
            client.upgrade()
        assert client.hello().pid == binder.pid
        code.mend()
        client.upgrade()
        assert client.hello().pid == binder.pid


@pytest.mark.parametrize("option", ["--pidfile", "--log-file"])
def test_a_file_that_the_start_could_not_write_refuses_the_upgrade(
    start_binder: StartBinder, run_dir: Path, option: str
) -> None:
    directory = run_dir / "files"
    directory.mkdir()
    binder = start_binder(option, str(directory / "file"))
    (directory / "file").unlink()
    directory.rmdir()
    with Client(binder.socket_path, timeout=PATIENCE_S) as client:
        with pytest.raises(RequestError, match=option):
            client.upgrade()
        assert client.hello().pid == binder.pid
        directory.mkdir()
        client.upgrade()
        assert client.hello().pid == binder.pid


def test_an_upgrade_with_too_few_descriptors_allowed_is_refused(binder: Binder, host: str) -> None:
    require("prlimit", Path("/usr/bin/prlimit").exists(), "lowers the limit of a running process")
    with Client(binder.socket_path) as client:
        for each in client.bind([(host, port) for port in range(8000, 8050)]):
            each.close()
        before = client.list()
        subprocess.run(["prlimit", "--pid", str(binder.pid), "--nofile=70:4096"], check=True)
        client.upgrade()
        assert client.list() == before
        subprocess.run(["prlimit", "--pid", str(binder.pid), "--nofile=60:60"], check=True)
        with pytest.raises(RequestError, match="RLIMIT_NOFILE has been lowered to 60"):
            client.upgrade()
        assert client.list() == before


@pytest.mark.parametrize("limit", ["--as=100000000:100000000", "--nproc=1:1", "--stack=65536:65536", "--fsize=0:0"])
def test_an_upgrade_under_a_lowered_limit_is_refused_or_works(binder: Binder, host: str, limit: str) -> None:
    require("prlimit", Path("/usr/bin/prlimit").exists(), "lowers the limit of a running process")
    with Client(binder.socket_path, timeout=PATIENCE_S) as client:
        for each in client.bind([(host, port) for port in range(8000, 8050)]):
            each.close()
        before = client.list()
        subprocess.run(["prlimit", "--pid", str(binder.pid), limit], check=True)
        with contextlib.suppress(RequestError):
            client.upgrade()
        assert client.list() == before
        assert client.hello().pid == binder.pid
        assert client.hello().upgrade_failure is None
    assert can_connect((host, 8000))


def test_ten_who_ask_at_once_get_one_rehearsal_and_leave_no_zombie(
    staged: Binder, code: StagedCode, run_dir: Path
) -> None:
    counted = run_dir / "counted"
    code.runs("rehearsal", f"time.sleep(0.5)\nopen({str(counted)!r}, 'a').write('x')")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(staged.socket_path)) for _ in range(10)]
        for client in clients:
            client.send(request("upgrade"))
            staged.send_signal(signal.SIGUSR1)
        assert all("result" in client.reply() for client in clients)
        assert all(client.ask(request("hello"))["result"]["pid"] == staged.pid for client in clients)
    assert counted.read_text() == "x"
    assert children(staged.pid) == []


def test_a_process_that_the_rehearsal_leaves_behind_does_not_hold_the_upgrade_up(
    staged: Binder, code: StagedCode, run_dir: Path
) -> None:
    left = run_dir / "left"
    code.runs(
        "rehearsal",
        f"pid = os.fork()\nif pid == 0:\n    time.sleep(600)\nopen({str(left)!r}, 'w').write(str(pid))",
    )
    with Client(staged.socket_path, timeout=PATIENCE_S) as client:
        client.upgrade()
        assert client.hello().pid == staged.pid
    wait_until(
        lambda: not Path(f"/proc/{left.read_text()}/cmdline").exists() or has_ended(int(left.read_text())), "it is gone"
    )


def has_ended(pid: int) -> bool:
    """Return whether a process has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_a_stop_ends_a_rehearsal(staged: Binder, code: StagedCode, run_dir: Path) -> None:
    started = run_dir / "started"
    code.runs("rehearsal", f"open({str(started)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)")
    staged.send_signal(signal.SIGUSR1)
    wait_until(lambda: started.exists() and started.read_text(), "the rehearsal runs", log=staged.log)
    assert staged.stop() == 0
    wait_until(lambda: has_ended(int(started.read_text())), "the rehearsal has ended")


def test_a_refused_rehearsal_is_told_and_the_next_one_is_none_the_worse(staged: Binder, code: StagedCode) -> None:
    code.runs("rehearsal", "os.kill(os.getpid(), signal.SIGKILL)")
    with Client(staged.socket_path, timeout=PATIENCE_S) as client:
        for _ in range(3):
            with pytest.raises(RequestError, match="ended by signal 9"):
                client.upgrade()
        code.runs("rehearsal", "os._exit(0)")
        with pytest.raises(RequestError, match="without saying that it can start"):
            client.upgrade()
        code.mend()
        client.upgrade()
        assert client.hello().pid == staged.pid


@pytest.mark.parametrize("whole", [False, True])
def test_a_half_sent_request_holds_nobody_up_and_is_finished_in_the_new_version(
    start_binder: StartBinder, host: str, whole: bool
) -> None:
    binder = start_binder("--request-timeout", "120")
    message = request("bind", {"address": host, "port": 8000})
    with RawClient(binder.socket_path) as half, Client(binder.socket_path, timeout=60) as other:
        half.send((message if whole else b"") + message[:20])
        if whole:
            assert half.reply()["result"]["listeners"][0]["created"] is True
        began = time.monotonic()
        other.upgrade()
        assert other.hello().pid == binder.pid
        assert time.monotonic() - began < 30
        half.send(message[20:])
        assert half.reply()["result"]["listeners"][0].get("created", False) is not whole
        assert half.ask(request("hello"))["result"]["pid"] == binder.pid


def test_a_client_that_does_not_read_its_answer_delays_an_upgrade_by_two_seconds_at_most(
    start_binder: StartBinder, host: str
) -> None:
    binder = start_binder("--request-timeout", "120")
    with RawClient(binder.socket_path) as deaf, Client(binder.socket_path, timeout=60) as other:
        for each in other.bind([(host, port) for port in range(8000, 8200)]):
            each.close()
        for _ in range(40):
            deaf.send(request("list"))
        wait_for_backlog(deaf)
        began = time.monotonic()
        other.upgrade()
        assert other.hello().pid == binder.pid
        assert time.monotonic() - began < 30


def wait_for_backlog(client: RawClient) -> None:
    """Wait until the binder has stopped reading this client's requests."""
    before: list[int] = []

    def stays() -> bool:
        [size] = struct.unpack("i", fcntl.ioctl(client.socket, termios.FIONREAD, bytes(4)))
        before.append(size)
        return len(before) > 5 and before[-5] == size > 0

    wait_until(stays, "answers are in the queue")


def test_serve_refuses_more_listeners_than_can_be_upgraded(run_dir: Path) -> None:
    done = multibinder("serve", "--socket", run_dir / "no" / "mb.sock", "--max-listeners", "60000")
    assert done.returncode == 2
    assert "--max-listeners" in done.stderr
    assert "18688" in done.stderr
