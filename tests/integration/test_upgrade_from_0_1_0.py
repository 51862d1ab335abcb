"""A binder or guard of version 0.1.0 upgrades in place to this version, and keeps all that it has.

The command lines, settings, names and records are literal copies of those of version 0.1.0.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import Client, __version__
from multibinder.kernel.process import command_line_of
from multibinder.kernel.socket_options import cookie_of, inode_of
from tests.support import PATIENCE_S, can_connect, children, clean_environment, own_host, serving_pid, wait_until

PYTHON = [sys.executable, "-P"]


def settings(socket_path: Path, *, log_file: str | None = None, **changes: object) -> str:
    limits = {
        "request_bytes": 524288, "timeout_s": 10.0, "clients": 1024, "clients_per_uid": 256, "listeners": 500,
        "listeners_per_uid": 4096, "rate": 20000, "rate_per_uid": 2000, "in_flight": 65536, "in_flight_per_uid": 4096,
    }  # fmt: skip
    known = {
        "socket_path": str(socket_path), "mode": 432, "group": None, "policy": None,
        "orphan_ttl": [{"of": "", "seconds": 600}, {"of": "haproxy@*", "seconds": None}],
        "recover": True, "pidfile": None, "limits": limits,
    }  # fmt: skip
    return json.dumps({"settings": known | changes, "log_format": "text", "log_level": 20, "log_file": log_file})


def rehearse(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"import signal; signal.alarm(30); import {module} as binder; binder.rehearse()"
    command = [*PYTHON, "-c", code, *arguments] if module.endswith("binder") else [*PYTHON, "-m", module, *arguments]
    return subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False)


def test_the_rehearsal_of_0_1_0_runs_this_version(run_dir: Path) -> None:
    done = rehearse("multibinder.cli.binder", settings(run_dir / "mb.sock"))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


def test_a_running_0_1_0_can_import_the_rehearsal_that_this_version_has_installed() -> None:
    """0.1.0 imports the rehearsal with modules of its own version loaded, which have other names than ours."""
    code = """
import sys
import multibinder, multibinder.binder.loop
before = set(sys.modules)
from multibinder.binder.upgrade import Rehearsal
print(sorted(name for name in set(sys.modules) - before if name.startswith("multibinder")))
"""
    done = subprocess.run([*PYTHON, "-c", code], env=clean_environment(), capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("['multibinder.binder.upgrade']\n", "")


def test_the_rehearsal_of_the_guard_of_0_1_0_succeeds(run_dir: Path) -> None:
    done = rehearse("multibinder.cli.guard", settings(run_dir / "mb.sock"), "--rehearse")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


#: Does what 0.1.0 does last before it executes the new code. A guard has a binder as its child.
_LEAVE = """
import os, sys, time
from multibinder.kernel.listen_fds import pass_listen_fds
guard, pairs, *command = sys.argv[1:]
if int(guard):
    child = os.fork()
    if not child:
        time.sleep(600)
    os.environ["MULTIBINDER_GUARDED_PID"] = str(child)
else:
    os.environ["MULTIBINDER_UPGRADED"] = "1"
descriptors = [pair.split("=") for pair in pairs.split(",")]
pass_listen_fds([(name, int(number)) for name, number in descriptors], os.environ)
os.execv(command[0], command)
"""


class PassedOn:
    """The state that a binder of 0.1.0 passes on: two listeners, one with a port that the kernel chose, and records."""

    def __init__(self, directory: Path, host: str) -> None:
        self.path = directory / "mb.sock"
        self.listeners = [socket.create_server((host, 0), backlog=77), socket.create_server((host, 0))]
        self.control = socket.socket(socket.AF_UNIX)
        self.control.bind(str(self.path))
        self.control.listen(1024)
        self.peer, self.client = socket.socketpair()
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.notify.bind("")
        self.lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        self.journal = os.memfd_create("multibinder-records", os.MFD_CLOEXEC)
        os.write(self.journal, "".join(f"{json.dumps(line)}\n" for line in self.records()).encode())

    def records(self) -> list[dict[str, object]]:
        named, shared = self.listeners
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return [
            {"multibinder": 1, "boot": boot, "starts": 3, "upgrades": 2, "policy": False},
            {
                "address": f"{named.getsockname()[0]}:{named.getsockname()[1]}", "cookie": cookie_of(named),
                "inode": inode_of(named), "claims": {"haproxy@web:107": 1}, "name": "stats", "backlog": 77,
                "handoffs": 1, "created": 1795710626.25, "chosen": True,
            },
            {
                "address": f"{shared.getsockname()[0]}:{shared.getsockname()[1]}", "cookie": cookie_of(shared),
                "inode": inode_of(shared), "claims": {"haproxy@web:107": 1, ":0": 1}, "handoffs": 2,
                "created": 1795710627.5, "foreign": True,
            },
        ]  # fmt: skip

    def descriptors(self, *, guard: bool) -> list[tuple[str, int]]:
        """Return names and numbers of the descriptors. A guard has a notification socket and a store, but no client."""
        own = [("notify", self.notify.fileno())] if guard else [("peer", self.peer.fileno())]
        names = ["1C_", "1D0"] if guard else ["unkept", "unkept"]
        return [
            *own,
            ("control", self.control.fileno()),
            ("lock", self.lock),
            ("records-4", self.journal),
            *((name, listener.fileno()) for name, listener in zip(names, self.listeners, strict=True)),
        ]

    @contextlib.contextmanager
    def passed_on(self, log: Path, command: list[str], *, guard: bool = False) -> Iterator[subprocess.Popen[bytes]]:
        """Run ``command`` with all that 0.1.0 passes on to its next version. This process closes its own copies."""
        descriptors = self.descriptors(guard=guard)
        pairs = [f"{name}={number}" for name, number in descriptors]
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", _LEAVE, str(int(guard)), ",".join(pairs), *command],
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=[number for _, number in descriptors],
            )
        self.close()
        try:
            yield process
            process.terminate()
            assert process.wait(PATIENCE_S) == 0, log.read_text()
            assert "Traceback" not in log.read_text(), log.read_text()
        finally:
            process.kill()
            process.wait()

    def close(self) -> None:
        for each in (self.control, self.peer, self.notify, *self.listeners):
            each.close()
        os.close(self.lock)
        os.close(self.journal)


@pytest.fixture
def state(run_dir: Path) -> PassedOn:
    return PassedOn(run_dir, own_host())


def test_listeners_owners_names_and_clients_survive_the_upgrade(run_dir: Path, state: PassedOn) -> None:
    _, named, shared = state.records()
    command = [*PYTHON, "-m", "multibinder.cli.binder", settings(state.path)]
    with state.client, state.passed_on(run_dir / "log", command):
        with Client(state.path) as client:
            assert client.hello().version == __version__
            first, second = client.list()
            status = client.status()
        assert (first.address, first.cookie, first.name, first.owners, first.backlog_requested, first.created) == (
            named["address"], named["cookie"], "stats", ["haproxy@web"], 77, 1795710626.25,
        )  # fmt: skip
        assert (second.address, second.owners, second.handoffs) == (shared["address"], ["haproxy@web", ""], 2)
        assert (status.starts, status.upgrades) == (3, 3)
        assert [owner.uid for owner in status.listeners[0].owners] == [107]
        assert [each.orphan_ttl_s for each in status.listeners] == [None, None]
        state.client.sendall(b'{"jsonrpc":"2.0","method":"hello","id":"1","params":[]}\n')
        state.client.settimeout(20)
        assert json.loads(state.client.recv(65536))["result"]["version"] == __version__
        # Only the records say that the kernel chose a port, and that another PID namespace has a listener.
        written = [json.loads(line) for line in Path(f"{state.path}.state").read_text().splitlines()[1:]]
        assert [line.get("chosen", False) for line in written[:2]] == [True, False]
        assert [line.get("foreign", False) for line in written[:2]] == [False, True]


def test_files_that_cannot_be_written_cost_a_line_and_no_listener(run_dir: Path, state: PassedOn) -> None:
    cookies = [cookie_of(each) for each in state.listeners]
    broken = settings(state.path, pidfile=str(run_dir / "no" / "pid"), log_file=str(run_dir / "no" / "log"))
    with state.client, state.passed_on(run_dir / "log", [*PYTHON, "-m", "multibinder.cli.binder", broken]):
        with Client(state.path) as client:
            assert [each.cookie for each in client.list()] == cookies
            log = (run_dir / "log").read_text()
            assert "event=no-pidfile" in log
            assert "log_file_lost=" in log
            # The log file is used as soon as it can be opened.
            (run_dir / "no").mkdir()
            client.bind([(own_host(), 8000)])[0].close()
        assert "event=bound" in wait_until((run_dir / "no" / "log").read_text, "the log file is written")


def test_a_control_socket_that_cannot_be_created_again_costs_no_listener(run_dir: Path, state: PassedOn) -> None:
    addresses = [each.getsockname() for each in state.listeners]
    state.path.unlink()
    Path(f"{state.path}.lock").unlink()
    with Path(f"{state.path}.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        command = [*PYTHON, "-m", "multibinder.cli.binder", settings(state.path)]
        with state.client, state.passed_on(run_dir / "log", command):
            state.client.sendall(b'{"jsonrpc":"2.0","method":"hello","id":"1","params":[]}\n')
            state.client.settimeout(20)
            assert json.loads(state.client.recv(65536))["result"]["version"] == __version__
            assert all(can_connect(address) for address in addresses)
            assert "event=control-socket-lost" in (run_dir / "log").read_text()


def test_a_guard_of_0_1_0_becomes_this_one_with_all_that_it_kept(run_dir: Path, state: PassedOn) -> None:
    cookies = [cookie_of(each) for each in state.listeners]
    with (
        state.client,
        state.passed_on(
            run_dir / "log", [*PYTHON, "-m", "multibinder.cli.guard", settings(state.path)], guard=True
        ) as guard,
    ):
        [child] = wait_until(lambda: children(guard.pid), "the guard has its child")
        wait_until(lambda: b"cli.guard" in command_line_of(guard.pid), "this version's guard runs")
        # The child that the guard took over was no real binder. When it dies, the guard starts a binder with its store.
        os.kill(child, signal.SIGKILL)
        assert serving_pid(state.path) not in (child, guard.pid)
        with Client(state.path) as client:
            assert [each.cookie for each in client.list()] == cookies
            assert [each.owners for each in client.list()] == [["haproxy@web"], ["haproxy@web", ""]]
            assert (client.status().keeper, client.status().starts) == ("guard", 4)
