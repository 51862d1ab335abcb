"""``serve --guard`` keeps the sockets when the binder dies at any moment."""

from __future__ import annotations

import os
import re
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from multibinder import Client, ListenerSpec, Options, TcpAddress
from tests.support import (
    PATIENCE_S,
    Binder,
    BrokenCode,
    as_user,
    can_connect,
    children,
    clean_environment,
    descriptors,
    identities,
    require,
    serving_pid,
    wait_until,
)
from tests.support.campaign import times
from tests.support.installation import interpreter_for_everybody


class Guard(Binder):
    """A guard as a subprocess. Its child is the binder."""

    def kill_binder(self) -> int:
        """Send SIGKILL to the binder, wait until the next one answers, and return its PID."""
        pid = serving_pid(self.socket_path)
        os.kill(pid, signal.SIGKILL)
        return serving_pid(self.socket_path, not_=pid)

    def __enter__(self) -> Guard:
        return self

    def forget_tracebacks(self) -> None:
        """Hide tracebacks of code that the test broke, so that they do not fail it at the end."""
        self.log_path.write_text(self.log_path.read_text().replace("Traceback", "traceback"))


@pytest.fixture
def guard(run_dir: Path) -> Iterator[Guard]:
    with Guard(run_dir, "--guard") as guard:
        guard.wait_until_ready()
        yield guard


def test_the_binder_is_the_guards_child(guard: Guard) -> None:
    assert children(guard.pid) == [serving_pid(guard.socket_path)]


def test_the_next_binder_has_the_sockets_of_a_killed_one(guard: Guard, host: str) -> None:
    wanted = [
        ListenerSpec(TcpAddress.parse(f"{host}:8000"), Options(backlog=50, name="web")),
        ListenerSpec(TcpAddress.parse(f"{host}:0")),
    ]
    with Client(guard.socket_path) as client:
        for listener in [*client.bind(wanted, owner="one"), *client.bind(wanted[:1], owner="two")]:
            listener.close()
    before = identities(guard.socket_path)
    for _ in range(3):
        guard.kill_binder()
        assert identities(guard.socket_path) == before
    with Client(guard.socket_path) as client:
        assert {status.name: status.owners for status in client.list()} == {"web": ["one", "two"], None: ["one"]}


def test_a_client_in_the_accept_queue_waits_for_the_next_holder(guard: Guard, host: str) -> None:
    with Client(guard.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
    with socket.create_connection((host, 8000)) as waiting:
        waiting.sendall(b"still here")
        guard.kill_binder()
        with Client(guard.socket_path) as client:
            [listener] = client.bind([(host, 8000)])
        with listener, listener.accept()[0] as connection:
            assert connection.recv(100) == b"still here"


def test_new_clients_can_connect_while_no_binder_runs(run_dir: Path, host: str) -> None:
    code = BrokenCode(run_dir / "code")
    with Guard(run_dir, "--guard", environment=code.environment) as guard:
        guard.wait_until_ready()
        with Client(guard.socket_path) as client:
            client.bind([(host, 8000)])[0].close()
        code.breaks("not yet")
        os.kill(serving_pid(guard.socket_path), signal.SIGKILL)
        guard.wait_for_log("event=binder-died")
        assert can_connect((host, 8000))
        code.mend()
        serving_pid(guard.socket_path)
        assert guard.stop() == 0
        guard.forget_tracebacks()


def test_a_client_of_the_control_socket_waits_for_the_next_binder(guard: Guard) -> None:
    pid = serving_pid(guard.socket_path)
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([pidfd], [], [], PATIENCE_S)[0]  # until then it may take the connection, and end with it
    os.close(pidfd)
    with Client(guard.socket_path) as client:  # connects at once, or to the next binder
        assert client.hello().pid != pid


def test_a_binder_that_was_stopped_without_its_guard_is_started_again(guard: Guard, host: str) -> None:
    with Client(guard.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
    pid = serving_pid(guard.socket_path)
    os.kill(pid, signal.SIGTERM)  # a regular stop, which removes the file of the control socket that the guard keeps
    serving_pid(guard.socket_path, not_=pid)
    assert [address for address, *_ in identities(guard.socket_path)] == [f"{host}:8000"]


def test_no_acknowledged_bind_is_ever_missing(guard: Guard, host: str) -> None:
    bound: dict[str, int] = {}
    pid = serving_pid(guard.socket_path)
    for port in range(8000, 8000 + times(12, 100)):
        with Client(guard.socket_path) as client:
            [listener] = client.bind([(host, port)], owner=f"o{port}")
            os.kill(pid, signal.SIGKILL)
        bound[f"{host}:{port}"] = os.fstat(listener.fileno()).st_ino
        listener.close()
        pid = serving_pid(guard.socket_path, not_=pid)
        with Client(guard.socket_path) as client:
            found = {status.address: status.owners for status in client.list()}
        assert found == {address: [f"o{address.rpartition(':')[2]}"] for address in bound}, guard.log()
    with Client(guard.socket_path) as client:
        for address, inode in bound.items():
            with client.bind([TcpAddress.parse(address)])[0] as listener:
                assert os.fstat(listener.fileno()).st_ino == inode


def test_a_full_store_is_reported_to_the_client_and_logged(run_dir: Path, host: str) -> None:
    # The control socket, its lock and the records take three places.
    with Guard(run_dir, "--guard", environment={"FDSTORE": "4"}) as guard:
        guard.wait_until_ready()
        with Client(guard.socket_path) as client:
            client.bind([(host, 8000)])[0].close()
            with pytest.warns(RuntimeWarning, match=f"{host}:8001: this listener would not survive a crash"):
                client.bind([(host, 8001)])[0].close()
        assert "limit=4 lost=1" in guard.wait_for_log("event=store-full")
        guard.kill_binder()
        assert [address for address, *_ in identities(guard.socket_path)] == [f"{host}:8000"]


def test_a_kept_socket_that_a_holder_shut_down_listens_again(guard: Guard, host: str) -> None:
    with Client(guard.socket_path) as client:
        [listener] = client.bind([(host, 8000)])
    with listener:
        socket.socket.shutdown(listener, socket.SHUT_RDWR)  # as a program without the library does
        guard.kill_binder()
    serving_pid(guard.socket_path)
    assert can_connect((host, 8000))


def test_sigkill_in_the_middle_of_an_upgrade_loses_nothing(guard: Guard, host: str) -> None:
    with Client(guard.socket_path) as client:
        for listener in client.bind([(host, port) for port in range(8000, 8050)], owner="web"):
            listener.close()
    before = identities(guard.socket_path)
    for delay_ms in range(0, 200, 20):
        pid = serving_pid(guard.socket_path)
        os.kill(pid, signal.SIGUSR1)
        time.sleep(delay_ms / 1000)  # the signal may arrive before, during or after the exec
        os.kill(pid, signal.SIGKILL)
        serving_pid(guard.socket_path, not_=pid)
        assert identities(guard.socket_path) == before


def test_a_released_listener_does_not_come_back(guard: Guard, host: str) -> None:
    pid = serving_pid(guard.socket_path)
    for port in range(8000, 8010):
        with Client(guard.socket_path) as client:
            for listener in client.bind([(host, port), (host, 9000)]):
                listener.close()
            assert client.release([(host, port)])[0].outcome == "closed"
            os.kill(pid, signal.SIGKILL)
        pid = serving_pid(guard.socket_path, not_=pid)
        with Client(guard.socket_path) as client:
            assert [status.address for status in client.list()] == [f"{host}:9000"]
        assert not can_connect((host, port))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_guard_and_its_binder(guard: Guard, host: str, number: signal.Signals) -> None:
    with Client(guard.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
    guard.send_signal(number)
    assert guard.wait() == 0
    assert f"event=stopping signal={number.name}" in guard.log()
    assert not can_connect((host, 8000))
    left = {entry.name for entry in guard.socket_path.parent.iterdir()}
    assert left - {"mb.sock.state"} == {"mb.log", "mb.notify"}


def test_the_guard_stops_also_while_no_binder_runs(run_dir: Path) -> None:
    code = BrokenCode(run_dir / "code")
    with Guard(run_dir, "--guard", environment=code.environment) as guard:
        guard.wait_until_ready()
        code.breaks("for good")
        os.kill(serving_pid(guard.socket_path), signal.SIGKILL)
        wait_until(lambda: guard.log().count("event=binder-died") > 3, "the next binders died as well", log=guard.log)
        assert guard.stop() == 0
        guard.forget_tracebacks()


def test_a_binder_that_cannot_start_is_retried_with_growing_pauses(run_dir: Path, host: str) -> None:
    code = BrokenCode(run_dir / "code")
    with Guard(run_dir, "--guard", environment=code.environment) as guard:
        guard.wait_until_ready()
        with Client(guard.socket_path) as client:
            client.bind([(host, 8000)], owner="me")[0].close()
        before = identities(guard.socket_path)
        code.breaks("come back later")
        os.kill(serving_pid(guard.socket_path), signal.SIGKILL)

        def pauses() -> list[float]:
            return [float(pause) for pause in re.findall(r"event=binder-died .*again_in_s=([0-9.]+)", guard.log())]

        wait_until(lambda: len(pauses()) >= 4, "four of them died", log=guard.log)
        assert pauses() == sorted(set(pauses()))
        code.mend()
        assert identities(guard.socket_path) == before
        guard.forget_tracebacks()


def test_sigusr1_to_the_guard_upgrades_its_binder(guard: Guard, host: str) -> None:
    with Client(guard.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
        before, pid = client.list(), client.hello().pid
        guard.send_signal(signal.SIGUSR1)
        wait_until(lambda: guard.log().count("event=serving") == 2, "the binder serves again", log=guard.log)
        assert (client.list(), client.hello().pid) == (before, pid)
    guard.kill_binder()
    assert [status[:2] for status in identities(guard.socket_path)] == [(f"{host}:8000", before[0].cookie)]


def test_sigusr2_upgrades_the_guard_and_its_binder_stays(guard: Guard, host: str) -> None:
    with Client(guard.socket_path) as client:
        client.bind([(host, 8000)], owner="me")[0].close()
    before, pid = identities(guard.socket_path), serving_pid(guard.socket_path)
    for count in range(1, 4):
        guard.send_signal(signal.SIGUSR2)
        wait_until(lambda: guard.log().count("event=guard-upgrading") == count, "it upgrades", log=guard.log)  # noqa: B023
    assert serving_pid(guard.socket_path) == pid
    with Client(guard.socket_path) as client:
        client.bind([(host, 8001)], owner="me")[0].close()
        client.release([(host, 8001)], owner="me")
    for _ in range(3):
        guard.kill_binder()
        assert identities(guard.socket_path) == before
    assert guard.stop() == 0


def test_a_binder_that_dies_while_its_guard_upgrades_is_started_again(guard: Guard, host: str) -> None:
    with Client(guard.socket_path) as client:
        client.bind([(host, 8000)], owner="me")[0].close()
    before = identities(guard.socket_path)
    for count in range(1, 6):
        pid = serving_pid(guard.socket_path)
        guard.send_signal(signal.SIGUSR2)
        wait_until(lambda: guard.log().count("event=guard-upgrading") == count, "it upgrades", log=guard.log)  # noqa: B023
        os.kill(pid, signal.SIGKILL)
        serving_pid(guard.socket_path, not_=pid)
        assert identities(guard.socket_path) == before


def test_a_stop_during_the_guards_upgrade_is_not_lost(run_dir: Path) -> None:
    for attempt in range(3):
        with Guard(run_dir, "--guard", name=f"mb{attempt}") as guard:
            guard.wait_until_ready()
            guard.send_signal(signal.SIGUSR2)
            if attempt:
                wait_until(lambda: len(children(guard.pid)) > 1, "the guard tries the new code", log=guard.log)
            guard.send_signal(signal.SIGTERM)
            assert guard.wait() == 0


def test_a_broken_new_guard_is_refused(run_dir: Path, host: str) -> None:
    code = BrokenCode(run_dir / "code")
    with Guard(run_dir, "--guard", environment=code.environment) as guard:
        guard.wait_until_ready()
        pid = serving_pid(guard.socket_path)
        code.breaks("no guard in here")
        guard.send_signal(signal.SIGUSR2)
        assert "no guard in here" in guard.wait_for_log("event=guard-upgrade-refused")
        code.mend()
        assert serving_pid(guard.socket_path) == pid
        assert guard.kill_binder() != pid


def test_the_guard_leaks_no_descriptors(guard: Guard, host: str) -> None:
    with Client(guard.socket_path) as client:
        for listener in client.bind([(host, port) for port in range(8000, 8005)]):
            listener.close()
    guard.kill_binder()
    before = len(guard.descriptors())
    for _ in range(20):
        pid = guard.kill_binder()
    wait_until(lambda: len(guard.descriptors()) <= before, "no descriptor is left over", log=guard.log)
    assert children(guard.pid) == [pid]


def test_a_guard_whose_starter_ignored_sigchld_believes_only_the_word_of_its_rehearsal(run_dir: Path) -> None:
    code = BrokenCode(run_dir / "code")
    ignoring = [sys.executable, "-c", _IGNORE_SIGCHLD]
    with Guard(run_dir, "--guard", environment=code.environment, prefix=ignoring) as guard:
        guard.wait_until_ready()
        pid = serving_pid(guard.socket_path)
        code.breaks("a traceback is no version")
        guard.send_signal(signal.SIGUSR2)
        assert "a traceback is no version" in guard.wait_for_log("event=guard-upgrade-refused")
        code.mend()
        guard.send_signal(signal.SIGUSR2)
        guard.wait_for_log("event=guard-upgrading")
        assert serving_pid(guard.socket_path) == pid
        guard.kill_binder()
        assert guard.stop() == 0


def test_a_release_whose_removal_was_unsent_at_an_upgrade_stays_released(guard: Guard, host: str) -> None:
    addresses: list[tuple[str, int] | TcpAddress] = [(host, port) for port in range(8000, 8100)]
    with Client(guard.socket_path) as client:
        for listener in client.bind([*addresses, (host, 9000)]):
            listener.close()
        # The queue of the guard's socket takes some ten messages (net.unix.max_dgram_qlen).
        guard.suspend()
        assert {released.outcome for released in client.release(addresses)} == {"closed"}
        os.kill(client.hello().pid, signal.SIGUSR1)
    wait_until(lambda: guard.log().count("event=serving") == 2, "the binder has upgraded", log=guard.log)
    guard.resume()
    for _ in range(2):
        guard.kill_binder()
        assert [address for address, *_ in identities(guard.socket_path)] == [f"{host}:9000"]


_FLOOD = r"""
import os, socket, struct, sys, threading, time
until = time.monotonic() + 2
with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.connect(sys.argv[1])
    peers = []
    while time.monotonic() < until:
        lingering = socket.create_connection(listening.getsockname())
        peers.append(listening.accept()[0])
        lingering.setblocking(False)
        try:
            while True:
                lingering.send(b"x" * 65536)
        except BlockingIOError:
            lingering.setblocking(True)
        lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 20))
        try:
            for text in (b"X=1", b"FDSTORE=1\nFDNAME=x", b"FDSTORE=1\nFDNAME=x", b"BARRIER=1", b"\xff="):
                socket.send_fds(sock, [text], [lingering.fileno()])
        except BrokenPipeError:
            pass
        # Whoever closes the last copy waits, which should be the guard. The kernel ends a wait of ours at the exit.
        threading.Thread(target=lingering.close, daemon=True).start()
    socket.send_fds(sock, [b"FDSTOREREMOVE=1\nFDNAME=x"], [])
os._exit(0)
"""


def test_a_flood_of_its_own_user_with_lingering_sockets_does_not_hold_up_the_guard(guard: Guard, host: str) -> None:
    with Client(guard.socket_path) as client:
        client.bind([(host, 7999)])[0].close()  # by then, the guard has the control socket and its lock too
    before = len(guard.descriptors())
    command = [sys.executable, "-c", _FLOOD, f"{guard.socket_path}.guard"]
    with (
        subprocess.Popen(command, env=clean_environment()) as flooding,
        Client(guard.socket_path) as client,
        warnings.catch_warnings(),
    ):
        # A message of another program within a batch makes the guard confirm less than it has.
        warnings.simplefilter("ignore", RuntimeWarning)
        port = 8000
        while flooding.poll() is None:
            began = time.monotonic()
            client.bind([(host, port)])[0].close()
            assert time.monotonic() - began < 5
            port += 1
        assert flooding.returncode == 0
        kept = [listener.address for listener in client.status().listeners if listener.kept]
    wait_until(lambda: len(guard.descriptors()) <= before + port - 8000, "nothing is left of the flood", log=guard.log)
    assert guard.log_path.read_text().count("\n") < 60 + port - 8000
    guard.kill_binder()
    assert kept
    assert {address for address, *_ in identities(guard.socket_path)} >= set(kept)


_GUARD_WITHOUT_DESCRIPTORS = """
import os, resource, socket, sys
from multibinder.binder import guard
from multibinder.binder.guard_rehearsal import Upgrade
from multibinder.cli.logs import log_to
log_to(None, "text", 20)
sock = socket.create_server(("127.0.0.1", 0))
port = sock.getsockname()[1]
if sock.fileno() != 3:
    os.dup2(sock.detach(), 3)
os.closerange(4, 100)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="kept")
sys.stderr.write(f"port={port}\\n")
# Another process lowers the limit at the worst moment.
guard.raise_limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4096))
binder = [sys.executable, "-P", "-m", "multibinder.cli.binder_main", sys.argv[2]]
guard.run(binder, Upgrade(["-"], ["-"]), None, sys.argv[1])
"""


def test_a_guard_without_a_descriptor_for_itself_keeps_the_sockets_and_waits(run_dir: Path) -> None:
    settings = msgspec.json.encode({"settings": {"socket_path": str(run_dir / "mb.sock")}}).decode()
    with Guard(
        run_dir, command=[sys.executable, "-P", "-c", _GUARD_WITHOUT_DESCRIPTORS, str(run_dir / "mb.sock"), settings]
    ) as guard:
        port = int(guard.wait_for_log("port=").partition("=")[2])
        assert "Too many open files" in guard.wait_for_log("event=guard-waits")
        assert can_connect(("127.0.0.1", port))
        resource.prlimit(guard.pid, resource.RLIMIT_NOFILE, (4096, 4096))
        guard.wait_until_ready()
        assert [address for address, *_ in identities(guard.socket_path)] == [f"127.0.0.1:{port}"]


_IGNORE_SIGCHLD = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execvp(sys.argv[1], sys.argv[1:])
"""

_SEND = """
import socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    try:
        sock.sendto(sys.argv[2].encode(), sys.argv[1])
    except PermissionError:
        sys.exit(13)
"""


def send_to_guard(guard: Guard, message: str, prefix: Sequence[str] = ()) -> int:
    command = [*prefix, str(interpreter_for_everybody()), "-c", _SEND, f"{guard.socket_path}.guard", message]
    return subprocess.run(command, check=False, env=clean_environment()).returncode


def names_at(pid: int) -> list[str]:
    """Return the names of the descriptors that a binder got from its guard."""
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return next(line for line in environment if line.startswith("LISTEN_FDNAMES=")).partition("=")[2].split(":")


def test_another_user_cannot_reach_the_guards_socket(guard: Guard, host: str) -> None:
    as_another = as_user(65534)
    guard.socket_path.parent.chmod(0o755)
    with Client(guard.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
    names = names_at(guard.kill_binder())
    for name in names:
        assert send_to_guard(guard, f"FDSTOREREMOVE=1\nFDNAME={name}", as_another) == 13
    assert {"control", "lock"} < set(names_at(guard.kill_binder()))
    assert [address for address, *_ in identities(guard.socket_path)] == [f"{host}:8000"]
    names = names_at(guard.kill_binder())
    # The guard obeys the same messages from its own user. So the other user was refused for being another one.
    for name in names:
        assert send_to_guard(guard, f"FDSTOREREMOVE=1\nFDNAME={name}") == 0
    guard.kill_binder()
    assert identities(guard.socket_path) == []


def test_a_guards_socket_that_was_removed_is_made_again_before_the_next_start(guard: Guard, host: str) -> None:
    own = guard.socket_path.with_name("mb.sock.guard")
    own.unlink()
    with Client(guard.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
    assert stat.S_IMODE(own.lstat().st_mode) == 0o600 if own.exists() else True
    guard.kill_binder()
    assert stat.S_IMODE(own.lstat().st_mode) == 0o600
    with Client(guard.socket_path) as client:
        client.bind([(host, 8001)])[0].close()
    guard.kill_binder()
    assert [address for address, *_ in identities(guard.socket_path)] == [f"{host}:8000", f"{host}:8001"]


def test_a_path_that_is_too_long_gives_the_guard_a_private_directory(run_dir: Path, host: str) -> None:
    directory = run_dir / ("n" * (107 - len(f"{run_dir}//mb.notify")))
    directory.mkdir()
    with Guard(directory, "--guard") as guard:
        guard.wait_until_ready()
        with Client(guard.socket_path) as client:
            client.bind([(host, 8000)])[0].close()
        environment = Path(f"/proc/{guard.kill_binder()}/environ").read_text().split("\0")
        [address] = [line.partition("=")[2] for line in environment if line.startswith("NOTIFY_SOCKET=")]
        assert stat.S_IMODE(Path(address).parent.stat().st_mode) == 0o700
        assert [address for address, *_ in identities(guard.socket_path)] == [f"{host}:8000"]
    assert not Path(address).parent.exists()


def test_more_listeners_than_the_soft_limit_are_all_kept(run_dir: Path, host: str) -> None:
    with Guard(run_dir, "--guard", nofile=(128, 4096)) as guard:
        guard.wait_until_ready()
        with Client(guard.socket_path) as client:
            for listener in client.bind([(host, port) for port in range(8000, 8200)]):
                listener.close()
            assert all(listener.kept for listener in client.status().listeners)
        before = identities(guard.socket_path)
        guard.kill_binder()
        assert identities(guard.socket_path) == before
        assert len(before) == 200


def leave_no_room(guard: Guard, host: str) -> None:
    """Bind port 7999, which the guard keeps, and lower its limit so that it can take no further descriptor."""
    with Client(guard.socket_path) as client:
        # The answer comes when the guard has all that its binder has stored before.
        client.bind([(host, 7999)])[0].close()
    wait_until(
        lambda: sum(target.startswith("pipe:") for target in guard.descriptors().values()) == 1,
        "the guard has only the pipe of the binder's start",
        log=guard.log,
    )
    lowest_free = next(number for number in range(4096) if number not in guard.descriptors())
    resource.prlimit(guard.pid, resource.RLIMIT_NOFILE, (lowest_free, 4096))


def test_what_a_guard_without_room_cannot_take_is_never_said_to_be_kept(guard: Guard, host: str) -> None:
    # The limit is lowered while the guard runs: the kernel drops descriptors on their way, that of the barrier too.
    leave_no_room(guard, host)
    with Client(guard.socket_path) as client, pytest.warns(RuntimeWarning, match="would not survive a crash"):
        client.bind([(host, 8000)])[0].close()
    with Client(guard.socket_path) as client:
        kept = {str(listener.address): listener.kept for listener in client.status().listeners}
    assert kept == {f"{host}:7999": True, f"{host}:8000": False}
    assert "count=1" in guard.wait_for_log("event=store-lost")


_GUARD_OF_A_QUICK_BINDER = """
import sys
from multibinder.binder import guard
from multibinder.binder.guard_rehearsal import Upgrade
from multibinder.cli.logs import log_to
binder = '''
from multibinder.binder.settings import Timings
from multibinder.cli import binder_main
binder_main.main(Timings(look_every_s=0.2))
'''
log_to(None, "text", 20)
guard.run([sys.executable, "-P", "-c", binder, sys.argv[2]], Upgrade(["-"], ["-"]), None, sys.argv[1])
"""


def test_what_was_not_kept_is_kept_when_the_guard_has_room_again(run_dir: Path, host: str) -> None:
    settings = msgspec.json.encode({"settings": {"socket_path": str(run_dir / "mb.sock")}}).decode()
    command = [sys.executable, "-P", "-c", _GUARD_OF_A_QUICK_BINDER, str(run_dir / "mb.sock"), settings]
    with Guard(run_dir, command=command) as guard:
        guard.wait_until_ready()
        leave_no_room(guard, host)
        with Client(guard.socket_path) as client:
            with pytest.warns(RuntimeWarning, match="would not survive a crash"):
                client.bind([(host, 8000)])[0].close()
            resource.prlimit(guard.pid, resource.RLIMIT_NOFILE, (4096, 4096))
            wait_until(lambda: all(each.kept for each in client.status().listeners), "it is kept", log=guard.log)
        guard.kill_binder()
        assert [address for address, *_ in identities(guard.socket_path)] == [f"{host}:7999", f"{host}:8000"]


def test_a_guard_that_does_not_answer_costs_one_wait_and_few_descriptors(guard: Guard, host: str) -> None:
    binder = serving_pid(guard.socket_path)
    with warnings.catch_warnings(), Client(guard.socket_path, timeout=60) as client:
        warnings.simplefilter("ignore", RuntimeWarning)
        before = len(descriptors(binder))
        guard.suspend()
        client.bind([(host, 8000)])[0].close()
        began = time.monotonic()
        for port in range(8001, 8101):
            client.bind([(host, 8000)])[0].close()
            client.bind([(host, port)])[0].close()
            client.release([(host, port)])
        assert time.monotonic() - began < 8
        assert len(descriptors(binder)) < before + 8
        assert guard.log().count("event=store-silent") == 1
        guard.resume()
        guard.wait_for_log("event=store-answers")
        guard.kill_binder()
        assert [address for address, *_ in identities(guard.socket_path)] == [f"{host}:8000"]
        assert not can_connect((host, 8050))


def test_a_guard_that_cannot_fork_keeps_the_sockets_and_tries_again(guard: Guard, host: str) -> None:
    # A fork without a free descriptor fails in the guard itself, before a child exists.
    with Client(guard.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
    pid = serving_pid(guard.socket_path)
    leave_no_room(guard, host)
    before = identities(guard.socket_path)
    os.kill(pid, signal.SIGKILL)
    guard.wait_for_log("event=binder-not-started")
    assert can_connect((host, 8000))
    resource.prlimit(guard.pid, resource.RLIMIT_NOFILE, (4096, 4096))
    assert identities(guard.socket_path) == before


def test_a_guard_whose_interpreter_is_missing_says_so_and_goes_on(run_dir: Path) -> None:
    code = """
import sys
from multibinder.binder import guard
from multibinder.binder.guard_rehearsal import Upgrade
from multibinder.cli.logs import log_to
log_to(None, "text", 20)
guard.run(["/nowhere/python"], Upgrade(["/nowhere/python", "-m", "x", "{}"], ["-"]), None, sys.argv[1])
"""
    command = [sys.executable, "-P", "-c", code, str(run_dir / "mb.sock")]
    with Guard(run_dir, command=command) as guard:
        assert "No such file or directory" in guard.wait_for_log("event=binder-died")
        guard.send_signal(signal.SIGUSR2)
        guard.wait_for_log("event=guard-upgrade-refused")
        assert guard.stop() == 0


def test_a_guard_that_is_pid_1_reaps_orphaned_processes_and_restarts_its_binder(run_dir: Path, host: str) -> None:
    require("root", os.geteuid() == 0, "a PID namespace needs root")
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    probe = subprocess.run([*unshare, "true"], capture_output=True, check=False)
    require("unshare", probe.returncode == 0, f"no PID namespace here: {probe.stderr!r}")
    with Guard(run_dir, "--guard", prefix=unshare) as outside:
        outside.wait_until_ready()
        [guard] = children(outside.pid)
        try:
            with Client(outside.socket_path) as client:
                client.bind([(host, 8000)], owner="me")[0].close()
            before = identities(outside.socket_path)
            subprocess.run(
                ["nsenter", "-t", str(guard), "-p", "-m", "sh", "-c", "sleep 0.3 & sleep 0.3 & exit 0"], check=True
            )
            wait_until(
                lambda: len(children(guard)) == 3, "the guard has two orphaned processes as children", log=outside.log
            )
            wait_until(lambda: len(children(guard)) == 1, "the guard has reaped them", log=outside.log)
            for _ in range(5):
                [binder] = children(guard)
                os.kill(binder, signal.SIGKILL)
                wait_until(lambda: children(guard) not in ([], [binder]), "the next one runs", log=outside.log)  # noqa: B023
                assert identities(outside.socket_path) == before
        finally:
            os.kill(guard, signal.SIGTERM)
        assert outside.wait() == 0
    assert not outside.socket_path.exists()


def test_a_descriptor_that_was_announced_and_is_not_open_is_in_its_log() -> None:
    code = """
import logging, os
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
from multibinder.binder.inherit import warn_not_open
from multibinder.cli.logs import log_to
from multibinder.kernel.listen_fds import take_listen_fds
log_to(None, "text", logging.INFO)
take_listen_fds(os.environ, warn_not_open)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert 'event=inherited-unknown descriptor=3 what="Bad file descriptor"' in done.stderr


def test_a_guard_makes_the_file_of_its_socket_again_and_an_upgraded_binder_finds_it(guard: Guard, host: str) -> None:
    os.unlink(f"{guard.socket_path}.guard")
    pid = serving_pid(guard.socket_path)
    os.kill(pid, signal.SIGUSR1)
    guard.wait_for_log("event=upgrading ")
    guard.wait_for_log("event=guard-socket-gone ")
    guard.wait_for_log("event=store-answers ")  # it had connected by the path, in vain
    with Client(guard.socket_path) as client, warnings.catch_warnings():
        warnings.simplefilter("error")  # a caution would say that the listener is not kept
        client.bind([(host, 8000)])[0].close()
    guard.kill_binder()
    assert can_connect((host, 8000))


def test_a_listener_released_while_the_guard_cannot_be_reached_does_not_listen_after_a_crash(
    guard: Guard, host: str
) -> None:
    with Client(guard.socket_path) as client:
        for sock in client.bind([(host, 8000), (host, 8001)]):
            sock.close()
    path = Path(f"{guard.socket_path}.guard")
    path.unlink()
    path.mkdir()  # so that the guard cannot make the file again
    # The journal that the guard has is now that of the life before: none of these two lives reaches the guard.
    for number in (1, 2):
        os.kill(serving_pid(guard.socket_path), signal.SIGUSR1)
        wait_until(lambda n=number: guard.log().count("event=store-unreachable ") >= n, "the guard is out of reach")  # type: ignore[misc]
        serving_pid(guard.socket_path)
    with Client(guard.socket_path) as client:
        assert [each.outcome for each in client.release([(host, 8000)])] == ["closed"]
    guard.kill_binder()
    assert can_connect((host, 8001))
    assert not can_connect((host, 8000))
