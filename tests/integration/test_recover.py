"""Without a guard and without systemd, the next binder recovers the sockets from processes that still hold them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from multibinder import BindError, Client, ListenerSpec, Options, TcpAddress
from tests.support import PROGRAM, Binder, as_user, can_connect, identities, require, wait_until, without_privileges
from tests.support.installation import for_everybody


class Holder:
    """A process that holds these sockets and does nothing with them."""

    def __init__(self, *numbers: int, prefix: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen([*prefix, "sleep", "600"], pass_fds=numbers)
        self.pid = self._process.pid
        wait_until(lambda: Path(f"/proc/{self.pid}/comm").read_text() == "sleep\n", "the holder runs")

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def holding() -> Iterator[contextlib.ExitStack]:
    """End holders when the test ends."""
    with contextlib.ExitStack() as stack:
        yield stack


def bind_and_hold(
    binder: Binder, stack: contextlib.ExitStack, *wanted: ListenerSpec, prefix: Sequence[str] = ()
) -> Holder:
    with Client(binder.socket_path) as client:
        sockets = client.bind(wanted, owner="me")
    holder = Holder(*(sock.fileno() for sock in sockets), prefix=prefix)
    stack.callback(holder.end)
    for sock in sockets:
        sock.close()
    return holder


def spec(host: str, port: int, **options: object) -> ListenerSpec:
    return ListenerSpec(TcpAddress.parse(f"{host}:{port}"), Options(**options))  # type: ignore[arg-type]


def kill(binder: Binder) -> None:
    binder.send_signal(signal.SIGKILL)
    assert binder.wait() == -signal.SIGKILL


@contextlib.contextmanager
def successor(
    dead: Binder, *options: str, prefix: Sequence[str] = (), program: Sequence[str] = PROGRAM
) -> Iterator[Binder]:
    """Start another binder at the same path, with a new log."""
    directory = dead.socket_path.parent
    command = [*program, "serve", "--socket", str(dead.socket_path)]
    name = f"next{len(list(directory.glob('next*.log')))}"
    with Binder(directory, *options, name=name, command=command, prefix=prefix) as binder:
        binder.socket_path = dead.socket_path
        yield binder.wait_until_ready()


@pytest.fixture
def first(run_dir: Path) -> Iterator[Binder]:
    """A binder that the test may kill."""
    binder = Binder(run_dir)
    try:
        yield binder.wait_until_ready()
    finally:
        if binder.process.poll() is None:
            binder.process.kill()
            binder.process.wait()
        binder.__exit__(None, None, None)


def test_a_killed_binders_sockets_come_back_from_their_holder(
    first: Binder, holding: contextlib.ExitStack, host: str
) -> None:
    bind_and_hold(first, holding, spec(host, 8000, name="web", backlog=40), spec(host, 0))
    before = identities(first.socket_path)
    kill(first)
    with successor(first) as binder:
        assert identities(binder.socket_path) == before
        assert binder.log().count("event=recovered") == 2
        with Client(binder.socket_path) as client:
            assert client.list()[0].owners == ["me"]
            client.release([(host, 8000)], owner="me")
        assert not can_connect((host, 8000))


def test_listeners_that_no_process_has_any_more_are_said_once(
    first: Binder, holding: contextlib.ExitStack, host: str
) -> None:
    holder = bind_and_hold(first, holding, *(spec(host, port) for port in range(8000, 8006)))
    with Client(first.socket_path) as client:
        for listener in client.bind([(host, 8100)]):
            listener.close()
        client.release([(host, 8100)])
    kill(first)
    holder.end()
    with successor(first) as binder:
        said = binder.wait_for_log("event=not-recovered")
        addresses = ",".join(f"{host}:{port}" for port in range(8000, 8005))
        assert f"count=6 addresses={addresses},... why=" in said
        with Client(binder.socket_path) as client:
            assert client.list() == []
            client.bind([(host, 8000)])[0].close()
        kill(binder)
    with successor(first) as binder:
        assert f"count=1 addresses={host}:8000 " in binder.wait_for_log("event=not-recovered")


def test_sockets_are_recovered_by_one_binder_after_the_other(
    first: Binder, holding: contextlib.ExitStack, host: str
) -> None:
    bind_and_hold(first, holding, spec(host, 8000))
    before = identities(first.socket_path)
    kill(first)
    for _ in range(3):
        with successor(first) as binder:
            assert identities(binder.socket_path) == before
            kill(binder)


def test_a_stopped_binders_sockets_come_back_too(first: Binder, holding: contextlib.ExitStack, host: str) -> None:
    bind_and_hold(first, holding, spec(host, 8000))
    before = identities(first.socket_path)
    assert first.stop() == 0
    with successor(first) as binder:
        assert identities(binder.socket_path) == before


def test_a_released_listener_is_not_recovered(first: Binder, holding: contextlib.ExitStack, host: str) -> None:
    bind_and_hold(first, holding, spec(host, 8000), spec(host, 8001))
    with Client(first.socket_path) as client:
        client.release([(host, 8000)], owner="me")
    kill(first)
    with successor(first) as binder, Client(binder.socket_path) as client:
        assert [status.address for status in client.list()] == [f"{host}:8001"]
        client.bind([(host, 8000)])[0].close()  # a new socket


def test_a_binder_told_not_to_recover_names_the_holder(first: Binder, holding: contextlib.ExitStack, host: str) -> None:
    holder = bind_and_hold(first, holding, spec(host, 8000))
    kill(first)
    with successor(first, "--no-recover") as binder, Client(binder.socket_path) as client:
        assert client.list() == []
        with pytest.raises(BindError, match=rf"address already in use, by sleep \(pid {holder.pid}\)"):
            client.bind([(host, 8000)])


def test_without_a_holder_a_bind_makes_a_new_socket(first: Binder, holding: contextlib.ExitStack, host: str) -> None:
    holder = bind_and_hold(first, holding, spec(host, 8000))
    before = identities(first.socket_path)
    kill(first)
    holder.end()
    with successor(first) as binder, Client(binder.socket_path) as client:
        assert client.list() == []
        client.bind([(host, 8000)], owner="me")[0].close()
        assert client.list()[0].cookie != before[0][1]
        assert "event=recovered" not in binder.log()


def test_an_unrelated_socket_at_the_address_is_not_recovered(
    first: Binder, holding: contextlib.ExitStack, host: str
) -> None:
    holder = bind_and_hold(first, holding, spec(host, 8000))
    kill(first)
    holder.end()
    with socket.socket() as stranger:
        stranger.bind((host, 8000))
        stranger.listen()
        with successor(first) as binder, Client(binder.socket_path) as client:
            assert client.list() == []
            with pytest.raises(BindError, match=rf"address already in use, by .*\(pid {os.getpid()}\)"):
                client.bind([(host, 8000)])


def test_a_socket_with_the_recorded_inode_and_another_cookie_is_not_recovered(
    first: Binder, holding: contextlib.ExitStack, host: str
) -> None:
    bind_and_hold(first, holding, spec(host, 8000))
    kill(first)
    # The kernel reuses inode numbers but not cookies. A record of a closed socket can look like this one.
    state = Path(f"{first.socket_path}.state")
    header, *records = map(json.loads, state.read_text().splitlines())
    for record in records:
        record.pop("crc")
    changed = [header, *({**record, "cookie": record["cookie"] + 1} for record in records)]
    state.write_text("".join(f"{json.dumps(line)}\n" for line in changed))
    with successor(first) as binder, Client(binder.socket_path) as client:
        assert client.list() == []
        assert "event=recovered" not in binder.log()


@pytest.mark.parametrize(
    ("damage", "event"),
    [
        (lambda text: text[: text.index(b'"inode"')], "event=records-damaged"),
        (lambda text: text[:20], "event=records-unreadable"),
        (lambda text: os.urandom(5000), "event=records-unreadable"),
        (lambda text: b"", "event=records-unreadable"),
        (lambda text: text.replace(b'"boot":"', b'"boot":"another'), "event=records-unreadable"),
        (lambda text: b'{"multibinder":1,"boot":"another"}\n' + text, "event=records-outdated"),
    ],
    ids=["cut", "cut short", "rubbish", "empty", "damaged boot", "other boot"],
)
def test_a_damaged_state_file_is_logged_and_does_no_harm(
    first: Binder, holding: contextlib.ExitStack, host: str, damage: object, event: str
) -> None:
    bind_and_hold(first, holding, spec(host, 8000))
    kill(first)
    state = Path(f"{first.socket_path}.state")
    state.write_bytes(damage(state.read_bytes()))  # type: ignore[operator]
    with successor(first) as binder, Client(binder.socket_path) as client:
        binder.wait_for_log(event)
        assert client.list() == []
        client.bind([(host, 8001)])[0].close()
    assert state.read_bytes().startswith(b'{"multibinder":')


@pytest.mark.parametrize(
    "damage",
    [{"backlog": 0}, {"name": "a b"}, {"handoffs": -1}, {"claims": {"x:" + "9" * 5000: 1}}, {"address": "nowhere"}],
    ids=str,
)
def test_the_socket_of_a_record_that_makes_no_sense_is_recovered_as_inherited(
    first: Binder, holding: contextlib.ExitStack, host: str, damage: dict[str, object]
) -> None:
    bind_and_hold(first, holding, spec(host, 8000), spec(host, 8001))
    before = identities(first.socket_path)
    kill(first)
    state = Path(f"{first.socket_path}.state")
    header, *lines = state.read_text().splitlines()
    records = [json.loads(line) for line in lines]
    of_last = [record["cookie"] == records[-1]["cookie"] for record in records]
    lines = [
        json.dumps(record | damage, separators=(",", ":")) if is_damaged else line
        for record, line, is_damaged in zip(records, lines, of_last, strict=True)
    ]
    state.write_text("\n".join([header, *lines, ""]))
    with successor(first) as binder, Client(binder.socket_path) as client:
        assert [(status.address, status.cookie) for status in client.list()] == [one[:2] for one in before]
        assert sorted(status.owners for status in client.list()) == [["inherited"], ["me"]]
        binder.wait_for_log("event=records-damaged")


def test_what_was_released_while_the_disk_was_full_does_not_come_back(
    run_dir: Path, holding: contextlib.ExitStack, host: str
) -> None:
    require("root", os.geteuid() == 0, "mounting a small file system needs root")
    small = run_dir / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8k,mode=0700", "none", str(small)], capture_output=True, check=False
    )
    require("mount", mounted.returncode == 0, f"cannot mount a tmpfs here: {mounted.stderr!r}")
    try:
        first = Binder(run_dir, command=[*PROGRAM, "serve", "--socket", str(small / "s")])
        first.socket_path = small / "s"
        with contextlib.suppress(AssertionError), first:
            first.wait_until_ready()
            bind_and_hold(first, holding, spec(host, 8000), spec(host, 8001))
            with Client(first.socket_path) as client:
                for port in range(8100, 8150):
                    client.bind([(host, port)])[0].close()
                first.wait_for_log("event=state-file-lost")
                client.release([(host, 8000)], owner="me")
            kill(first)
        with Binder(run_dir, name="next", command=[*PROGRAM, "serve", "--socket", str(small / "s")]) as binder:
            binder.wait_until_ready()
            with Client(small / "s") as client:
                assert [status.address for status in client.list()] == [f"{host}:8001"]
            assert not can_connect((host, 8000))
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_full_disk_is_logged_once_and_does_no_harm(run_dir: Path, host: str) -> None:
    require("root", os.geteuid() == 0, "mounting a small file system needs root")
    small = run_dir / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k,mode=0700", "none", str(small)], capture_output=True, check=False
    )
    require("mount", mounted.returncode == 0, f"cannot mount a tmpfs here: {mounted.stderr!r}")
    try:
        path = small / "s"
        command = [sys.executable, "-m", "multibinder", "serve", "--socket", str(path)]
        with Binder(run_dir, command=command) as binder:
            binder.wait_until_ready()
            with Client(path) as client:
                for port in range(8000, 8050):
                    client.bind([(host, port)])[0].close()
                assert len(client.list()) == 50
                before = client.list()
                client.upgrade()
                assert client.list() == before
            assert binder.log_path.read_text().count("event=state-file-lost") <= 2  # one for each start of a binder
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_recovery_without_privileges_names_the_missing_capability(
    first: Binder, holding: contextlib.ExitStack, host: str
) -> None:
    bind_and_hold(first, holding, spec(host, 8000), prefix=as_user(65534))
    kill(first)
    with (
        successor(first, prefix=without_privileges(), program=for_everybody().program) as binder,
        Client(binder.socket_path) as client,
    ):
        assert client.list() == []
        with pytest.raises(BindError, match="address already in use") as raised:
            client.bind([(host, 8000)])
        assert "CAP_SYS_PTRACE" in binder.wait_for_log("event=cannot-recover")
        assert f"{host}:8000" in str(raised.value)
