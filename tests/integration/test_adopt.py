"""``multibinder adopt`` takes listeners from servers under load, which are then replaced: no client is lost."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import multibinder
from multibinder.kernel.netns import own_cookie
from multibinder.kernel.process import name_of
from multibinder.observe.adoptable import find
from tests.support import PATIENCE_S, Binder, clean_environment, own_port, require, wait_until
from tests.support import multibinder as command
from tests.support.campaign import times
from tests.support.load import Load
from tests.support.servers import server

_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
#: Connections or datagrams a second. The campaign makes what docs/promises.md says.
RATE = times(400, 1000)


@pytest.fixture(autouse=True)
def root() -> None:
    require("root", os.geteuid() == 0, "copying another process's sockets needs root")


@pytest.fixture
def environment(binder: Binder) -> dict[str, str]:
    return clean_environment({"MULTIBINDER_SOCK": str(binder.socket_path), "PYTHONPATH": os.getcwd()})


def adopt(binder: Binder, *arguments: object) -> str:
    done = command("adopt", "--socket", binder.socket_path, *map(str, arguments))
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{binder.log()}"
    return done.stdout


def test_a_python_server_with_threads_is_adopted_and_replaced_under_load_without_losing_a_client(
    binder: Binder, host: str, environment: dict[str, str]
) -> None:
    address = (host, 8000)
    name = f"{host}:8000"
    with server(name, "own", "share", environment=environment) as old, Load([address], rate=RATE, timeout_s=10) as load:
        load.mark("adoption")
        assert f"adopted from {name_of(old.pid)} (pid {old.pid})" in adopt(binder, "--owner", "web", name)
        with contextlib.ExitStack() as running:
            for replacement in range(times(1, 5)):
                load.mark(f"without a server {replacement}")
                old.terminate()
                old.wait(PATIENCE_S)
                old = running.enter_context(server(name, "binder", environment=environment))
                time.sleep(0.2)
            result = load.stop()
    assert result.total.failed == 0, f"{result.table()}\n{binder.log()}"
    with multibinder.Client(binder.socket_path) as client:
        assert [(each.address, each.owners) for each in client.list()] == [(name, ["web"])]


def test_all_siblings_are_adopted_also_those_of_other_processes(
    binder: Binder, host: str, environment: dict[str, str]
) -> None:
    name = f"{host}:8000"
    with contextlib.ExitStack() as running:
        first, _ = (running.enter_context(server(name, "own", "share", environment=environment)) for _ in range(2))
        assert f"{name} (2 sockets): adopted from {name_of(first.pid)} (pid " in adopt(
            binder, "--owner", "web", "--pid", first.pid
        )
        with multibinder.Client(binder.socket_path) as client:
            assert [(each.address, each.shard) for each in client.list()] == [(name, 0), (name, 1)]


def test_a_sibling_whose_process_ends_first_leaves_its_clients_to_the_others_at_once(
    binder: Binder, host: str, environment: dict[str, str]
) -> None:
    name = f"{host}:8000"
    with contextlib.ExitStack() as running:
        first, second = (running.enter_context(server(name, "own", "share", environment=environment)) for _ in range(2))
        load = running.enter_context(Load([(host, 8000)], rate=RATE, timeout_s=PATIENCE_S))
        assert "(2 sockets): adopted" in adopt(binder, "--owner", "web", name)
        load.mark("one ends")
        second.terminate()
        second.wait(PATIENCE_S)
        binder.wait_for_log("event=shard-abandoned")
        load.mark("one is left")
        time.sleep(0.2)
        load.mark("none is left")
        first.terminate()
        first.wait(PATIENCE_S)
        running.enter_context(server(name, "binder", environment=environment))
        time.sleep(0.2)
        result = load.stop()
    assert result.total.failed == 0, f"{result.table()}\n{binder.log()}"
    with multibinder.Client(binder.socket_path) as client:
        assert [(each.address, each.shard) for each in client.list()] == [(name, 0)]


def test_a_sibling_whose_sockets_another_process_has_got_meanwhile_stays(
    binder: Binder, host: str, environment: dict[str, str]
) -> None:
    name = f"{host}:8000"
    with contextlib.ExitStack() as running:
        first, second = (running.enter_context(server(name, "own", "share", environment=environment)) for _ in range(2))
        adopt(binder, "--owner", "web", name)
        [found] = find([], [second.pid], [first.pid, binder.pid]).listeners
        assert found.socket is not None
        with found.socket as copy:
            holding = subprocess.Popen(["sleep", "60"], pass_fds=[copy.fileno()])
        running.callback(holding.wait)
        running.callback(holding.kill)
        second.terminate()
        second.wait(PATIENCE_S)
        time.sleep(0.5)
        with multibinder.Client(binder.socket_path) as client:
            client.status()
            assert len(client.list()) == 2


def test_no_process_of_the_same_user_can_join_an_adopted_socket_that_is_alone(
    binder: Binder, environment: dict[str, str]
) -> None:
    port = own_port()
    with server(f"0.0.0.0:{port}", "own", "share", environment=environment):
        adopt(binder, f"0.0.0.0:{port}")
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("0.0.0.0", port), reuse_port=True)


class Datagrams:
    """A sender of numbered datagrams at a fixed rate, which notes the answers."""

    def __init__(self, address: tuple[str, int], rate: float) -> None:
        self._address, self._rate = address, rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent = 0
        self.answered: set[int] = set()

    def __enter__(self) -> Datagrams:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """Stop, wait for the answers that are still to come, and return how many datagrams got none."""
        self._stop.set()
        self._thread.join()
        return self.sent - len(self.answered)

    def _run(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            began = time.monotonic()
            while not self._stop.is_set():
                due = began + self.sent / self._rate
                self._receive(sock, max(0.0, due - time.monotonic()))
                sock.sendto(str(self.sent).encode(), self._address)
                self.sent += 1
            deadline = time.monotonic() + 2
            while len(self.answered) < self.sent and time.monotonic() < deadline:
                self._receive(sock, 0.1)

    def _receive(self, sock: socket.socket, seconds: float) -> None:
        until = time.monotonic() + seconds
        while select.select([sock], [], [], max(0.0, until - time.monotonic()))[0]:
            self.answered.add(int(sock.recv(64)))


def test_an_udp_server_is_adopted_and_replaced_under_load_without_losing_a_datagram(
    binder: Binder, host: str, environment: dict[str, str]
) -> None:
    address = (host, 8000)
    name = f"udp@{host}:8000"
    with server(name, "own", environment=environment) as old, Datagrams(address, RATE) as load:
        time.sleep(0.1)
        # With --pid: its SO_REUSEADDR does not make it a server of QUIC.
        assert f"{name}: adopted" in adopt(binder, "--owner", "web", "--pid", old.pid, name)
        with contextlib.ExitStack() as running:
            for _ in range(times(1, 5)):
                new = running.enter_context(server(name, "binder", environment=environment))
                old.terminate()
                old.wait(PATIENCE_S)
                time.sleep(0.2)
                old = new
            lost = load.stop()
    assert (lost, load.sent > 50) == (0, True), binder.log()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            thief.bind(address)


class UnixClients:
    """Clients of a Unix socket at a fixed rate: each connects, and reads its answer. Counts those that got none."""

    def __init__(self, path: Path, rate: float) -> None:
        self._path, self._rate = str(path), rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.tried = 0
        self.failures: list[str] = []

    def __enter__(self) -> UnixClients:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        while not self._stop.is_set():
            time.sleep(max(0.0, began + self.tried / self._rate - time.monotonic()))
            self.tried += 1
            try:
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.settimeout(PATIENCE_S)
                    sock.connect(self._path)
                    sock.sendall(b"GET /")
                    if not sock.recv(100).endswith(b"ok\n"):
                        self.failures.append("no answer")
            except OSError as error:
                self.failures.append(repr(error))


def test_a_server_on_a_unix_socket_is_adopted_and_replaced_under_load_without_losing_a_client(
    binder: Binder, run_dir: Path, environment: dict[str, str]
) -> None:
    path = run_dir / "app.sock"
    name = f"unix@{path}"
    with server(name, "own", environment=environment) as old, UnixClients(path, RATE) as load:
        assert f"{name}: adopted" in adopt(binder, "--owner", "web", "--pid", old.pid)
        with contextlib.ExitStack() as running:
            for _ in range(times(1, 5)):
                old.terminate()
                old.wait(PATIENCE_S)
                old = running.enter_context(server(name, "binder", environment=environment))
                time.sleep(0.2)
            load.__exit__()
    assert (load.failures, load.tried > 50) == ([], True), binder.log()


def test_a_path_that_the_old_server_unlinks_at_its_end_is_restored_within_moments(
    binder: Binder, run_dir: Path, environment: dict[str, str]
) -> None:
    """nginx, gunicorn and PHP-FPM do so. Only clients that come in these moments are refused."""
    path = run_dir / "app.sock"
    name = f"unix@{path}"
    with server(name, "own", "unlink", environment=environment) as old, UnixClients(path, RATE) as load:
        assert f"{name}: adopted" in adopt(binder, "--owner", "web", name)
        with server(name, "binder", environment=environment):
            old.terminate()
            old.wait(PATIENCE_S)
            time.sleep(0.3)
            load.__exit__()
    assert len(load.failures) < RATE / 20, load.failures
    assert all("FileNotFoundError" in each for each in load.failures), load.failures
    assert load.tried > 50


def test_a_dry_run_shows_all_and_changes_nothing(binder: Binder, host: str, environment: dict[str, str]) -> None:
    name = f"{host}:8000"
    with server(name, "own", "share", environment=environment) as old:
        done = command("adopt", "--socket", binder.socket_path, "--dry-run", "--pid", str(old.pid))
        assert done.returncode == 0
        assert name in done.stdout
        assert "can be adopted" in done.stdout
        with multibinder.Client(binder.socket_path) as client:
            assert client.list() == []
        adopt(binder, name)
        done = command("adopt", "--socket", binder.socket_path, "--dry-run", "--json", name)
        [row] = json.loads(done.stdout)
        assert (row["address"], row["state"], row["holders"]) == (
            name,
            "held",
            [{"pid": old.pid, "name": name_of(old.pid)}],
        )
        assert f"{name}: held already" in adopt(binder, name)


def test_a_listener_of_another_network_namespace_is_adopted_by_its_process(
    binder: Binder, environment: dict[str, str]
) -> None:
    unshare = shutil.which("unshare")
    require("unshare", unshare, "another network namespace needs unshare (util-linux)")
    code = "import socket; s = socket.create_server(('0.0.0.0', 8000)); print(flush=True); s.accept()"
    inside = [str(unshare), "--net", sys.executable, "-c", code]
    with subprocess.Popen(inside, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            shown = command("adopt", "--dry-run", "--json", "--pid", str(process.pid))
            [row] = json.loads(shown.stdout)
            adopt(binder, "--owner", "web", "--pid", process.pid)
        finally:
            process.kill()
    assert (row["address"], row["netns"] == own_cookie()) == ("0.0.0.0:8000", False)
    with multibinder.Client(binder.socket_path) as client:
        assert [(each.address, each.netns) for each in client.list()] == [("0.0.0.0:8000", row["netns"])]


def test_a_dry_run_needs_no_binder(host: str) -> None:
    with socket.create_server((host, 0)) as sock:
        name = f"{host}:{sock.getsockname()[1]}"
        with subprocess.Popen(["sleep", "60"], pass_fds=[sock.fileno()]) as sleeping:
            try:
                done = command("adopt", "--dry-run", "--pid", str(sleeping.pid))
            finally:
                sleeping.kill()
    assert (done.returncode, name in done.stdout) == (0, True)
    assert "no binder is named; what it holds already is not known" in done.stderr


def test_what_is_not_there_is_said_and_nothing_is_adopted(
    binder: Binder, host: str, environment: dict[str, str]
) -> None:
    name = f"{host}:8000"
    with server(name, "own", environment=environment):
        done = command("adopt", "--socket", binder.socket_path, name, f"{host}:1")
    assert done.returncode == 1
    assert f"{host}:1: no process that this user can see has a listener there" in done.stderr
    with multibinder.Client(binder.socket_path) as client:
        assert client.list() == []
    assert command("adopt", "--socket", binder.socket_path).returncode == 2
    assert command("adopt", "--socket", binder.socket_path, "--unit", "there-is-no-such.service").returncode == 2


def test_the_refusal_of_a_bind_names_the_command(binder: Binder, host: str, environment: dict[str, str]) -> None:
    name = f"{host}:8000"
    with server(name, "own", environment=environment) as old, multibinder.Client(binder.socket_path) as client:
        with pytest.raises(multibinder.BindError) as raised:
            client.bind([(host, int(name.rpartition(":")[2]))], owner="web")
        assert f"by {name_of(old.pid)} (pid {old.pid})" in str(raised.value)
        assert f"take it over with 'multibinder adopt --owner web {name}'" in str(raised.value)


@pytest.fixture
def nginx(run_dir: Path, host: str) -> list[str]:
    """The command of an nginx of two workers on two addresses; on the second one each worker has its own socket."""
    program = os.environ.get("NGINX_PROGRAM") or shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    require("nginx", program, "there is no nginx (NGINX_PROGRAM names another one)")
    temporary = "\n".join(f"{each}_temp_path {run_dir}/{each};" for each in _TEMPORARY)
    (run_dir / "nginx.conf").write_text(f"""
worker_processes 2;
daemon off;
pid {run_dir}/nginx.pid;
error_log {run_dir}/nginx.log;
events {{ }}
http {{
    access_log off;
    {temporary}
    server {{
        listen {host}:8000;
        listen {host}:8001 reuseport;
        location / {{ return 200 "ok\\n"; }}
    }}
}}
""")
    return [str(program), "-e", str(run_dir / "nginx.log"), "-c", str(run_dir / "nginx.conf")]


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str], host: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run nginx until the end of the block. It serves when this returns."""

    def serves() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((host, 8000), 1) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return bool(client.recv(100))
        return False

    with subprocess.Popen(command, env=environment) as process:
        try:
            wait_until(serves, "nginx serves", log=Path(command[command.index("-e") + 1]).read_text)
            yield process
        finally:
            process.terminate()


def test_a_live_nginx_is_adopted_and_replaced_under_load_without_losing_a_client(
    binder: Binder, host: str, environment: dict[str, str], nginx: list[str]
) -> None:
    addresses = [(host, 8000), (host, 8001)]
    # as docs/how-to/adopt.md says
    binds = ["--owner", "nginx", "-b", f"{host}:8000", "-b", f"{host}:8001,shards=2"]
    from_binder = [sys.executable, "-m", "multibinder", "exec", *binds, "--", *nginx]
    with running(nginx, environment, host) as old, Load(addresses, rate=RATE, timeout_s=10) as load:
        load.mark("adoption")
        said = adopt(binder, "--owner", "nginx", "--pid", old.pid)
        assert f"{host}:8001 (2 sockets): adopted from nginx" in said
        load.mark("the old one ends")
        old.send_signal(signal.SIGQUIT)  # it finishes its connections
        old.wait(PATIENCE_S)
        with running(from_binder, environment, host):
            load.mark("the new one serves")
            time.sleep(0.3)
            result = load.stop()
    assert result.total.failed == 0, f"{result.table()}\n{binder.log()}"
