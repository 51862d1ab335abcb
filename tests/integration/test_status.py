"""The binder reports queues, drops, holders and orphans of its listeners, and ``multibinder status`` shows them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from multibinder import Client, ListenerHealth, ListenerSpec, Options, TcpAddress
from multibinder.binder.orphan_ttl import OrphanTtl
from multibinder.binder.settings import Settings
from multibinder.cli.invocation import Invocation
from multibinder.kernel.socket_options import drops_of
from tests.conftest import StartBinder
from tests.support import (
    PATIENCE_S,
    Binder,
    RawClient,
    as_user,
    can_connect,
    children,
    clean_environment,
    descriptors,
    multibinder,
    request,
    require_ipv6,
    served_by,
    serving_pid,
    wait_until,
)
from tests.support.installation import for_everybody
from tests.support.namespaces import in_new_namespaces

#: A binder that looks for holders more often than every 15 s.
_HASTY = """
import time
from multibinder.binder.settings import Timings
from multibinder.cli import binder_main
timings = Timings(look_every_s={look_s}, look_timeout_s={timeout_s}, grace_s={grace_s}, repair_every_s=0.1)
binder_main.main(timings{more})
"""
#: Makes every look for holders take very long.
_SLOW = ", find_holders=lambda *args: time.sleep(30)"
_OWNER = "haproxy@web"


@pytest.fixture
def hasty(run_dir: Path, start_binder: StartBinder) -> Callable[..., Binder]:
    def start(
        *orphan_ttl: OrphanTtl,
        look_s: float = 0.2,
        grace_s: float = 0.5,
        more: str = "",
        mode: int = 0o600,
        prefix: Sequence[str] = (),
        python: Path = Path(sys.executable),
        name: str = "mb",
    ) -> Binder:
        settings = Settings(str(run_dir / f"{name}.sock"), mode=mode, orphan_ttl=orphan_ttl)
        program = _HASTY.format(look_s=look_s, timeout_s=60 if more else 1, grace_s=grace_s, more=more)
        invocation = msgspec.json.encode(Invocation(settings)).decode()
        command = [str(python), "-P", "-c", program, invocation]
        return start_binder(command=command, prefix=prefix, name=name)

    return start


class Server:
    """A process that got listeners from the binder, and never accepts."""

    def __init__(self, binder: Binder, *specs: ListenerSpec, owner: str = _OWNER) -> None:
        with Client(binder.socket_path) as client, contextlib.ExitStack() as ours:
            listeners = [ours.enter_context(each) for each in client.bind(specs, owner=owner)]
            self.process = subprocess.Popen(["sleep", "600"], pass_fds=[each.fileno() for each in listeners])

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    running: list[Server] = []

    def start(*args: object, **kwargs: object) -> Server:
        running.append(Server(*args, **kwargs))  # type: ignore[arg-type]
        return running[-1]

    yield start
    for server in running:
        server.kill()


def spec(host: str, port: int = 8000, backlog: int = 8) -> ListenerSpec:
    return ListenerSpec(TcpAddress.of(host, port), Options(backlog))


def health(binder: Binder) -> dict[int, ListenerHealth]:
    """Return the health of each listener by its port."""
    with Client(binder.socket_path) as client:
        return {int(each.address.rpartition(":")[2]): each for each in client.status().listeners}


def wait_for_state(binder: Binder, state: str, port: int = 8000) -> ListenerHealth:
    def found() -> ListenerHealth | None:
        listener = health(binder)[port]
        return listener if listener.state == state else None

    return wait_until(found, f"port {port} is {state}", log=binder.log)


def wait_while_looking(binder: Binder, seconds: float) -> None:
    """Wait until the binder has looked for holders for this many seconds."""

    def looked_at() -> float:
        with Client(binder.socket_path) as client:
            return client.status().looked_at or 0.0

    began = looked_at()
    wait_until(lambda: looked_at() > began + seconds, "the binder goes on looking for holders", log=binder.log)


@contextlib.contextmanager
def clients(host: str, port: int, count: int) -> Iterator[list[socket.socket]]:
    """Open connections that retry until the block ends."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            assert client.connect_ex((host, port)) in (0, errno.EINPROGRESS)
            found.append(client)
        yield found


def netstat(name: str) -> int:
    """Return a counter of this network namespace (proc_net_netstat in the kernel's documentation)."""
    lines = [line.split() for line in Path("/proc/net/netstat").read_text().splitlines()]
    names, values = [line for line in lines if line[0] == "TcpExt:"]
    return int(values[names.index(name)])


@in_new_namespaces
def test_a_server_that_does_not_accept_is_named_with_the_kernels_own_number_of_drops(
    hasty: Callable[..., Binder], serve: Callable[..., Server]
) -> None:
    binder = hasty()
    server = serve(binder, spec("127.0.0.1", 8000), spec("127.0.0.1", 8001))
    with Client(binder.socket_path) as client:
        [ours] = client.bind([spec("127.0.0.1")], owner=_OWNER)
    with ours, clients("127.0.0.1", 8000, 50) as trying:
        wait_until(lambda: drops_of(ours) >= 41, "all but nine clients are dropped")
        connected = select.select([], trying, [], 0)[1]
        for each in trying:
            if each not in connected:
                each.close()  # so that it does not retry, and the counters stay as they are
        full = wait_for_state(binder, "stalled")
        assert (full.queue, full.limit, len(connected)) == (9, 8, 9)
        assert full.drops == drops_of(ours) == netstat("ListenDrops") == netstat("ListenOverflows") >= 41
        other = health(binder)[8001]
        assert (other.state, other.queue, other.drops, other.drops_per_s) == ("serving", 0, 0, 0)
        assert other.holders is not None
        assert [(each.pid, each.name, each.role) for each in other.holders] == [(server.pid, "sleep", "holding")]
        assert "127.0.0.1:8000" in binder.wait_for_log("event=stalled")
        assert "waiting=9" in binder.wait_for_log("event=stalled")

        done = multibinder("status", "--socket", binder.socket_path)
        _, first, held, *_ = done.stdout.splitlines()
        assert first.split()[:4] == ["stalled", "127.0.0.1:8000", "9/8", str(full.drops)]
        assert f"sleep {server.pid} holding" in held
        assert "hidden" not in done.stdout
        done = multibinder("status", "--check", "--socket", binder.socket_path)
        assert done.returncode == 2
        assert "MULTIBINDER CRITICAL - 1 stalled: 127.0.0.1:8000 (9 waiting)" in done.stdout
        assert f" drops={full.drops}c " in done.stdout
        assert "8001" not in done.stdout


@in_new_namespaces
def test_a_killed_server_leaves_an_orphan_which_is_logged_and_shown(
    hasty: Callable[..., Binder], serve: Callable[..., Server]
) -> None:
    binder = hasty()
    serve(binder, spec("127.0.0.1", 8001))
    server = serve(binder, spec("127.0.0.1", 8000))
    wait_while_looking(binder, 1)
    assert {port: each.state for port, each in health(binder).items()} == {8000: "serving", 8001: "serving"}
    server.kill()
    with clients("127.0.0.1", 8000, 3):
        line = binder.wait_for_log("event=orphan ")
        assert "address=127.0.0.1:8000" in line
        assert f"owners={_OWNER} waiting=3 " in line
        orphan = wait_for_state(binder, "orphan")
        assert (orphan.holders, orphan.queue, orphan.orphan_ttl_s) == ([], 3, None)
        assert orphan.orphan_since is not None
        assert abs(time.time() - orphan.orphan_since) < PATIENCE_S
        done = multibinder("status", "--check", "--socket", binder.socket_path)
        assert (done.returncode, "1 orphan: 127.0.0.1:8000 (3 waiting)" in done.stdout) == (2, True)
        assert health(binder)[8001].state == "serving"
        serve(binder, spec("127.0.0.1", 8000))
        binder.wait_for_log("event=orphan-no-more")
        assert health(binder)[8000].orphan_since is None


_SOON = 1.0


@in_new_namespaces
@pytest.mark.parametrize(
    ("orphan_ttl", "closes"),
    [
        ([OrphanTtl("", _SOON)], True),
        ([OrphanTtl("haproxy@*", _SOON)], True),
        ([OrphanTtl("", None), OrphanTtl("127.0.0.1:8000", _SOON)], True),
        ([OrphanTtl("haproxy@web", None), OrphanTtl("", _SOON)], False),
        ([OrphanTtl("other", _SOON)], False),
        ([], False),
    ],
    ids=["all", "owner", "address", "off", "another", "none"],
)
def test_the_clients_of_an_orphan_with_a_time_to_live_are_reset(
    hasty: Callable[..., Binder], serve: Callable[..., Server], orphan_ttl: list[OrphanTtl], closes: bool
) -> None:
    binder = hasty(*orphan_ttl)
    server = serve(binder, spec("127.0.0.1", 8000))
    serve(binder, spec("127.0.0.1", 8001))
    with clients("127.0.0.1", 8000, 3) as waiting:
        server.kill()
        binder.wait_for_log("event=orphan ")
        if closes:
            line = binder.wait_for_log("event=orphan-closed")
            assert "address=127.0.0.1:8000" in line
            assert line.endswith("reset=3")
            for client in waiting:
                client.settimeout(PATIENCE_S)
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            assert [*health(binder)] == [8001]
        else:
            wait_while_looking(binder, 2 * _SOON)
            assert health(binder)[8000].queue == 3
        assert can_connect(("127.0.0.1", 8000)) is not closes
        assert can_connect(("127.0.0.1", 8001))


@in_new_namespaces
def test_nothing_is_closed_while_holders_cannot_be_seen_and_root_sees_the_orphan_itself(
    run_dir: Path, hasty: Callable[..., Binder], serve: Callable[..., Server]
) -> None:
    prefix = [*as_user(65534), "--bounding-set=-all", "--inh-caps=-all"]
    everybody = for_everybody()
    os.chown(run_dir, 65534, 65534)
    os.umask(0)  # only the process of this test has it; the user of the binder must reach its notification socket
    binder = hasty(OrphanTtl("", 0.0), mode=0o666, prefix=prefix, python=everybody.python)
    server = serve(binder, spec("127.0.0.1"))
    wait_while_looking(binder, 2)
    assert (health(binder)[8000].holders, health(binder)[8000].state) == (None, "serving")
    [row] = json.loads(multibinder("status", "--json", "--socket", binder.socket_path).stdout)["listeners"]
    assert [each["pid"] for each in row["holders"]] == [server.pid]
    assert row["holders_complete"] is True

    done = multibinder("status", "--socket", binder.socket_path, prefix=prefix, program=everybody.program)
    assert "holders hidden" in done.stdout
    assert "Run this command as root" in " ".join(done.stdout.split())
    assert (
        multibinder(
            "status", "--check", "--socket", binder.socket_path, prefix=prefix, program=everybody.program
        ).returncode
        == 0
    )

    server.kill()
    with clients("127.0.0.1", 8000, 2):
        wait_while_looking(binder, 2)
        assert health(binder)[8000].state != "orphan"
        done = multibinder("status", "--check", "--socket", binder.socket_path)
        assert (done.returncode, "1 orphan: 127.0.0.1:8000 (2 waiting)" in done.stdout) == (2, True)
    assert "orphan" not in binder.log()


@in_new_namespaces
def test_a_listener_in_flight_to_a_client_is_no_orphan(hasty: Callable[..., Binder]) -> None:
    binder = hasty(OrphanTtl("", 0.0), grace_s=60)
    with RawClient(binder.socket_path) as client:
        client.send(request("bind", {"address": "127.0.0.1", "port": 8000}))
        wait_until(lambda: health(binder), "the listener is bound")
        wait_while_looking(binder, 1)
        assert health(binder)[8000].state == "serving"
        assert len(client.receive()[1]) == 1
    assert "orphan" not in binder.log()


@in_new_namespaces
def test_an_orphan_that_a_client_asks_for_is_not_closed(
    hasty: Callable[..., Binder], serve: Callable[..., Server]
) -> None:
    binder = hasty(OrphanTtl("", 4.0), grace_s=3)
    serve(binder, spec("127.0.0.1")).kill()
    binder.wait_for_log("event=orphan ")
    with RawClient(binder.socket_path) as client:
        client.send(request("bind", {"address": "127.0.0.1", "port": 8000}))
        assert "it was asked for" in binder.wait_for_log("event=orphan-no-more")
        wait_while_looking(binder, 1.5)
        assert can_connect(("127.0.0.1", 8000))
        [descriptor] = client.receive()[1]
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            sock.settimeout(PATIENCE_S)
            sock.accept()[0].close()
    assert "event=orphan-closed" not in binder.log()


@in_new_namespaces
def test_a_server_that_restarts_within_the_grace_leaves_no_orphan(
    hasty: Callable[..., Binder], serve: Callable[..., Server]
) -> None:
    binder = hasty(OrphanTtl("", 0.0), grace_s=3)
    server = serve(binder, spec("127.0.0.1"))
    wait_while_looking(binder, 3.3)  # so that the grace after a handoff is over
    server.kill()
    wait_until(lambda: health(binder)[8000].holders == [], "a look finds no holder", log=binder.log)
    serve(binder, spec("127.0.0.1"))
    wait_while_looking(binder, 3.5)
    assert health(binder)[8000].holders
    assert "orphan" not in binder.log()


@in_new_namespaces
def test_the_copies_in_the_guard_do_not_count_as_a_holder(
    start_binder: StartBinder, serve: Callable[..., Server]
) -> None:
    guard = start_binder("--guard")
    server = serve(guard, spec("127.0.0.1"))
    [held] = health(guard).values()
    assert held.kept
    assert held.holders is not None
    assert [each.pid for each in held.holders] == [server.pid]
    server.kill()
    assert health(guard)[8000].holders == []
    report = json.loads(multibinder("status", "--json", "--socket", guard.socket_path).stdout)
    assert report["binder"]["keeper"] == "guard"
    assert report["listeners"][0]["holders"] == []


def test_the_status_of_a_repaired_listener_says_so(hasty: Callable[..., Binder], host: str) -> None:
    binder = hasty()
    with Client(binder.socket_path) as client:
        [listener] = client.bind([spec(host)])
    with listener:
        socket.socket.shutdown(listener, socket.SHUT_RDWR)  # as a program without the library does
        repaired = wait_for_state(binder, "repaired")
    assert repaired.repairs == 1
    assert repaired.repaired_at is not None
    done = multibinder("status", "--check", "--socket", binder.socket_path)
    assert (done.returncode, f"1 repaired: {host}:8000" in done.stdout) == (1, True)


def test_a_queue_that_moves_is_not_stalled(hasty: Callable[..., Binder], host: str) -> None:
    binder = hasty()
    with Client(binder.socket_path) as client:
        [listener] = client.bind([spec(host)])
    with listener:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            with clients(host, 8000, 2):
                for _ in range(2):
                    listener.accept()[0].close()
                    assert health(binder)[8000].state == "serving"
    assert "event=stalled" not in binder.log()


def test_drops_before_an_upgrade_do_not_count_as_drops_per_second(hasty: Callable[..., Binder], host: str) -> None:
    binder = hasty(look_s=60)
    with Client(binder.socket_path) as client:
        [listener] = client.bind([spec(host, backlog=1)])
        with listener, clients(host, 8000, 10):
            wait_until(lambda: drops_of(listener) >= 8, "the queue overflows")
        before = drops_of(listener) if listener.fileno() >= 0 else 8
        client.upgrade()
        serving_pid(binder.socket_path)
        [after] = client.status().listeners
        assert after.drops is not None
        assert after.drops >= before
        assert after.drops_per_s == 0


def test_many_looks_leave_no_child_and_no_descriptor(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        client.bind([spec(host)])[0].close()
        client.status()
        before = binder.descriptors()
        for _ in range(50):
            client.status()
        assert children(binder.pid) == []
        assert binder.descriptors() == before


def test_a_look_under_way_ends_with_the_upgrade_of_its_binder(
    run_dir: Path, hasty: Callable[..., Binder], host: str
) -> None:
    binder = hasty(look_s=0.1, more=_SLOW)
    with Client(binder.socket_path) as client:
        client.bind([spec(host)])[0].close()
        wait_until(lambda: children(binder.pid), "a look is under way", log=binder.log)
        [child] = children(binder.pid)
        wait_until(lambda: len(descriptors(child)) <= 4, "the child has closed the descriptors that it does not need")
        client.upgrade()
        assert serving_pid(binder.socket_path) == binder.pid
        assert children(binder.pid) == []
        assert client.status().listeners[0].address == f"{host}:8000"


def test_a_crash_in_the_middle_of_a_look_leaves_nothing_behind(
    run_dir: Path, hasty: Callable[..., Binder], host: str
) -> None:
    settings = msgspec.json.encode(Invocation(Settings(str(run_dir / "mb.sock")))).decode()
    program = _HASTY.format(look_s=0.1, timeout_s=60, grace_s=1, more=_SLOW)
    process = subprocess.Popen([sys.executable, "-P", "-c", program, settings], env=clean_environment(), stderr=-3)
    child = 0
    try:
        serving_pid(run_dir / "mb.sock")
        with Client(run_dir / "mb.sock") as client:
            client.bind([spec(host)])[0].close()
        wait_until(lambda: children(process.pid), "a look is under way")
        [child] = children(process.pid)
        wait_until(lambda: len(descriptors(child)) <= 4, "the child has closed the descriptors that it does not need")
        process.kill()
        process.wait()
        assert not can_connect((host, 8000))
        assert hasty(name="mb").pid
    finally:
        process.kill()
        process.wait()
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def test_a_status_without_listeners_is_answered_every_time(binder: Binder) -> None:
    with Client(binder.socket_path) as client:
        assert client.status().listeners == []
        assert client.status().looked_at is None
        assert client.list() == []
    done = multibinder("status", "--socket", binder.socket_path)
    assert (done.returncode, done.stderr) == (0, "No listeners.\n")
    done = multibinder("status", "--check", "--socket", binder.socket_path)
    assert (done.returncode, done.stdout.startswith("MULTIBINDER OK - 0 listeners serving | listeners=0;")) == (0, True)


def test_status_in_a_pipe_is_plain_and_80_columns_wide(binder: Binder, host: str) -> None:
    require_ipv6()
    names = [None, "front", "a-rather-long-name-of-a-listener-that-somebody-had"]
    with Client(binder.socket_path) as client:
        for number, name in enumerate(names):
            address = TcpAddress.of("::1" if name else host, 0)
            for owner in ("haproxy@one", "haproxy@two", "another-owner-with-a-long-name", "and-the-last"):
                client.bind([ListenerSpec(address, Options(name=name))] if name else [spec(host, 8000 + number)],
                            owner=owner)[0].close()  # fmt: skip
    for environment in ({}, {"COLUMNS": "60"}, {"COLUMNS": "200"}):
        text = multibinder("status", "--socket", binder.socket_path, environment=environment).stdout
        width = int(environment.get("COLUMNS", "80"))
        assert [line for line in text.splitlines() if len(line) > max(width, 80)] == []
        assert "\x1b" not in text
        for word in ("haproxy@two", "and-the-last", "front", f"{host}:8000", *filter(None, names)):
            assert word in text


def test_colour_is_for_terminals_and_can_be_turned_off(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        client.bind([spec(host)])[0].close()
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}, {}):
        with Terminal("status", "--socket", str(binder.socket_path), environment=environment) as terminal:
            terminal.wait_for("1 listener")
            assert terminal.process.wait(PATIENCE_S) == 0
            assert "\x1b" not in terminal.text  # a serving listener has no colour


@pytest.mark.parametrize(
    ("hello", "sentence"),
    [
        (b'{"jsonrpc":"2.0","id":"1","result":{"name":"multibinder","version":"0.0.9","protocol":1}}',
         "(version 0.0.9) and does not know 'status'; bring it up to date"),
        (b'{"error":{"code":-32601,"message":"Method not found"}}', "is the Ruby multibinder"),
    ],
    ids=["older", "ruby"],
)  # fmt: skip
def test_a_binder_without_the_status_method_is_explained(run_dir: Path, hello: bytes, sentence: str) -> None:
    def answer(connection: socket.socket) -> None:
        asked = connection.recv(4096)
        connection.sendall(hello if b"hello" in asked else b'{"error":{"code":-32601,"message":"Method not found"}}')
        connection.recv(1)

    with served_by(run_dir / "old.sock", answer):
        done = multibinder("status", "--socket", run_dir / "old.sock")
        assert (done.returncode, done.stdout) == (1, "")
        assert sentence in done.stderr
        done = multibinder("status", "--check", "--socket", run_dir / "old.sock")
        assert (done.returncode, sentence in done.stdout) == (3, True)


def test_check_is_unknown_when_no_binder_answers(run_dir: Path) -> None:
    done = multibinder("status", "--check", "--socket", run_dir / "none.sock")
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.startswith("MULTIBINDER UNKNOWN - cannot reach the binder at ")


class Terminal:
    """The command line on a terminal of 80 columns and 24 lines."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = clean_environment({"TERM": "xterm", "PYTHONUTF8": "1", **(environment or {})})
        for name in {"COLUMNS", "LINES"}:
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "multibinder", *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.text = ""

    def wait_for(self, text: str, *, after: int = 0) -> None:
        def seen() -> bool:
            while select.select([self._ours], [], [], 0)[0]:
                try:
                    self.text += os.read(self._ours, 65536).decode(errors="replace")
                except OSError:  # EIO: no process has the other end open
                    break
            return text in self.text[after:]

        wait_until(seen, f"the terminal shows {text!r}", log=lambda: self.text)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *how: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


def test_watch_shows_the_worst_goes_on_after_a_restart_and_restores_the_terminal(
    start_binder: StartBinder, host: str
) -> None:
    binder = start_binder(name="a")
    held: list[socket.socket] = []
    with Client(binder.socket_path) as client:
        held += client.bind([spec(host, 8000 + number) for number in range(40)])
    with Terminal("status", "--watch", "--interval", "0.1", "--socket", str(binder.socket_path)) as terminal:
        terminal.wait_for("more not shown")
        terminal.wait_for("▁▁▁")
        assert "\x1b[?1049h" in terminal.text
        with clients(host, 8039, 3):
            terminal.wait_for("stalled")
            after = len(terminal.text)
            terminal.wait_for(f"{host}:8039", after=after)  # the last listener has the worst state
            terminal.wait_for("3/8", after=after)
            terminal.wait_for("▄", after=after)
        binder.process.kill()
        terminal.wait_for("No answer since")
        after = len(terminal.text)
        again = Binder(binder.socket_path.parent, name="a2", command=[
            sys.executable, "-m", "multibinder", "serve", "--socket", str(binder.socket_path)])  # fmt: skip
        with again:
            again.wait_until_ready()
            terminal.wait_for(f"pid {again.pid}", after=after)
            terminal.process.send_signal(signal.SIGINT)
            terminal.wait_for("\x1b[?1049l", after=after)
            assert terminal.process.wait(PATIENCE_S) == 0
            terminal.wait_for("\x1b[?25h", after=after)
            assert "Traceback" not in terminal.text
    binder.process.wait()
    for each in held:
        each.close()


def test_watch_in_a_pipe_is_plain(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        client.bind([spec(host)])[0].close()
    command = [sys.executable, "-m", "multibinder", "status", "--watch", "--interval", "0.1"]
    process = subprocess.Popen(
        [*command, "--socket", str(binder.socket_path)], env=clean_environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline() for _ in range(20)]
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        process.stdout.close()
    assert sum(line.startswith("STATE") for line in lines) >= 2
    assert "\x1b" not in "".join(lines)
