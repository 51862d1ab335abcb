"""The connection of a ``Client``: it waits for a binder, is made again where that is safe, and is for one thread."""

from __future__ import annotations

import array
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import multibinder
from multibinder import (
    BinderTimeout,
    BinderUnavailable,
    Client,
    ListenerSpec,
    LocalProtocolError,
    Options,
    TcpAddress,
)
from multibinder.pytest_plugin import RunningBinder
from tests.support import (
    PATIENCE_S,
    Binder,
    Json,
    clean_environment,
    descriptors_unchanged,
    later,
    served_by,
    wait_until,
)


@pytest.fixture(autouse=True)
def no_binder_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULTIBINDER_SOCK", raising=False)


@pytest.fixture
def listener(host: str) -> Iterator[socket.socket]:
    with socket.create_server((host, 8000)) as sock:
        yield sock


def answer(connection: socket.socket, request: Json, result: object, *rights: int) -> None:
    text = json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}).encode() + b"\n"
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", rights))] if rights else []
    connection.sendmsg([text], ancillary)


class Fake:
    """A binder that answers each request by the next of ``answers``, which may also close the connection.

    ``requests`` are the methods that arrived, ``connections`` the number of clients.
    """

    def __init__(self, *answers: Callable[[socket.socket, Json], object]) -> None:
        self.requests: list[str] = []
        self.connections = 0
        self._answers = list(answers)

    def __call__(self, connection: socket.socket) -> None:
        self.connections += 1
        while message := connection.recv(65536):
            request: Json = json.loads(message)
            self.requests.append(request["method"])
            if self._answers.pop(0)(connection, request) is CLOSE:
                return


CLOSE = object()


def close(connection: socket.socket, request: Json) -> object:
    return CLOSE


def no_listeners(connection: socket.socket, request: Json) -> None:
    answer(connection, request, [])


# Waiting


def test_bind_waits_for_a_binder_that_is_not_there_yet(multibinder_binder: RunningBinder, host: str) -> None:
    multibinder_binder.stop()
    path = multibinder_binder.socket_path
    bound: list[object] = []

    def bind() -> None:
        with multibinder.bind(host, 8000, socket_path=path, wait=PATIENCE_S) as listener:
            bound.append(listener.getsockname())

    waiting = threading.Thread(target=bind)
    waiting.start()
    multibinder_binder.start()  # takes half a second, and must be called by the thread that lives as long
    waiting.join(PATIENCE_S)
    assert bound == [(host, 8000)]


def test_waiting_ends_with_an_error_that_says_how_long(run_dir: Path) -> None:
    started = time.monotonic()
    with (
        descriptors_unchanged(),
        pytest.raises(BinderUnavailable, match=r"there is no such socket.* \(waited 0\.2 s for it\)"),
    ):
        Client(run_dir / "mb.sock", wait=0.2)
    assert 0.2 <= time.monotonic() - started < 3


def test_a_socket_without_a_binder_behind_it_is_waited_for(run_dir: Path) -> None:
    path = run_dir / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    def serve() -> None:
        path.unlink()
        server.enter_context(served_by(path, Fake(no_listeners)))

    with contextlib.ExitStack() as server, later(0.1, serve), Client(path, wait=PATIENCE_S) as client:
        assert client.list() == []


def test_a_file_in_the_way_is_not_waited_for(run_dir: Path) -> None:
    (run_dir / "s").touch()
    started = time.monotonic()
    with descriptors_unchanged(), pytest.raises(BinderUnavailable, match="it is not a socket"):
        Client(run_dir / "s", wait=PATIENCE_S)
    assert time.monotonic() - started < 5


def test_a_client_waits_for_the_next_binder_too(run_dir: Path) -> None:
    path = run_dir / "s"
    with contextlib.ExitStack() as server:
        with served_by(path, Fake(close)):
            client = Client(path, wait=PATIENCE_S)
            with pytest.raises(BinderUnavailable):
                client.release([("127.0.0.1", 80)])
        path.unlink()
        with later(0.1, lambda: server.enter_context(served_by(path, Fake(no_listeners)))), client:
            assert client.list() == []


# Connecting again


def test_a_client_goes_on_after_a_restart_and_a_crash_of_the_binder(
    multibinder_binder: RunningBinder, host: str
) -> None:
    with descriptors_unchanged(), Client(multibinder_binder.socket_path) as client:
        client.bind([(host, 8000)], owner="web")[0].close()
        multibinder_binder.restart()
        assert [each.owners for each in client.list()] == [["web"]]
        multibinder_binder.kill()
        # Nothing of this request was sent to the binder that has died.
        assert [each.outcome for each in client.release([(host, 8000)], owner="web")] == ["closed"]


def test_a_bind_is_asked_again_if_the_binder_ends_before_its_answer(
    run_dir: Path, listener: socket.socket, host: str
) -> None:
    fake = Fake(close, lambda connection, request: answer(connection, request, True, listener.fileno()))
    with descriptors_unchanged(), served_by(run_dir / "s", fake), Client(run_dir / "s") as client:
        client.bind([(host, 8000)])[0].close()
    assert (fake.requests, fake.connections) == (["bind", "bind"], 2)


def test_a_bind_is_asked_again_if_the_binder_stops_before_its_answer_is_acknowledged(
    run_dir: Path, listener: socket.socket, host: str
) -> None:
    """A binder that stops takes back what was not acknowledged: it shuts the listener down, which is on its way."""

    def taken_back(connection: socket.socket, request: Json) -> object:
        with socket.create_server((host, 8001)) as other:
            other.shutdown(socket.SHUT_RDWR)
            answer(connection, request, True, other.fileno())
        return CLOSE

    fake = Fake(taken_back, lambda connection, request: answer(connection, request, True, listener.fileno()))
    with descriptors_unchanged(), served_by(run_dir / "s", fake), Client(run_dir / "s") as client:
        client.bind([ListenerSpec(TcpAddress.of(host, 0), Options(name="web"))])[0].close()
    assert (fake.requests, fake.connections) == (["bind", "bind"], 2)


def test_a_binder_that_is_too_old_for_a_listener_is_named_with_the_remedy(run_dir: Path, host: str) -> None:
    """As version 0.1 answers, and as the Ruby program, which ignores what it does not know."""

    def old(connection: socket.socket, request: Json) -> None:
        complaint = "Invalid params: Object contains unknown field `mark` - at `params[0]`; a listener takes address"
        reply = {"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32602, "message": complaint}}
        connection.sendall(json.dumps(reply).encode() + b"\n")

    def ruby(connection: socket.socket, request: Json) -> None:
        with socket.create_server((host, 8000)) as made:
            answer(connection, request, True, made.fileno())

    marked = [ListenerSpec(TcpAddress.of(host, 8000), shards=1)]
    with descriptors_unchanged(), served_by(run_dir / "s", Fake(old, old, ruby)), Client(run_dir / "s") as client:
        too_old = rf"too old for {host}:8000: it does not know 'mark'; upgrade it \('multibinder upgrade'\)"
        with pytest.raises(LocalProtocolError, match=too_old):
            client.bind(marked)
        with pytest.raises(LocalProtocolError, match=too_old):
            client.check(marked)
        with pytest.raises(LocalProtocolError, match="the Ruby program, which has TCP listeners without options only"):
            client.bind(marked)


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.release([("127.0.0.1", 80)]),
        lambda client: client.move([("web:1", 2)]),
        lambda client: client.upgrade(),
    ],
    ids=["release", "move", "upgrade"],
)
def test_a_call_that_may_have_been_carried_out_is_not_repeated(run_dir: Path, call: Callable[[Client], object]) -> None:
    fake = Fake(close)
    with served_by(run_dir / "s", fake), Client(run_dir / "s") as client:
        with pytest.raises(BinderUnavailable, match="closed the connection without an answer"):
            call(client)
        assert len(fake.requests) == 1


def test_a_call_is_repeated_once(run_dir: Path) -> None:
    fake = Fake(close, close, no_listeners)
    with descriptors_unchanged(), served_by(run_dir / "s", fake), Client(run_dir / "s") as client:
        with pytest.raises(BinderUnavailable, match="closed the connection without an answer"):
            client.list()
        assert len(fake.requests) == 2
        assert client.list() == [], "the next call connects again"


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one(run_dir: Path) -> None:
    def late(connection: socket.socket, request: Json) -> None:
        assert connection.recv(1) == b"", "the client has closed the connection"

    fake = Fake(late, no_listeners)
    with descriptors_unchanged(), served_by(run_dir / "s", fake), Client(run_dir / "s", timeout=0.2) as client:
        with pytest.raises(BinderTimeout):
            client.list()
        assert client.list() == []


def test_a_refusal_keeps_the_connection(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        before = client._session._connection
        with pytest.raises(multibinder.RequestError):
            client.move([("no-uid", 1)])
        client.list()
        assert client._session._connection is before


def test_a_warning_of_the_binder_points_at_the_caller(run_dir: Path, listener: socket.socket, host: str) -> None:
    result = {
        "descriptors": 1,
        "listeners": [{"address": f"{host}:8000", "backlog": 1, "warning": "it will not last"}],
    }

    def warn(connection: socket.socket, request: Json) -> None:
        answer(connection, request, result, listener.fileno())

    path = run_dir / "s"
    with served_by(path, Fake(warn, warn, warn)), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        multibinder.bind(host, 8000, socket_path=path).close()
        multibinder.bind_many([(host, 8000)], socket_path=path)[0].close()
        with Client(path) as client:
            client.bind([(host, 8000)])[0].close()
    assert [str(each.message) for each in warned] == [f"{host}:8000: it will not last"] * 3
    assert [Path(each.filename).name for each in warned] == ["test_client_connection.py"] * 3


# One thread, one process


def test_a_client_in_use_by_another_thread_says_so(run_dir: Path) -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def hold(connection: socket.socket, request: Json) -> None:
        asked.set()
        assert may_answer.wait(PATIENCE_S)
        answer(connection, request, [])

    results: list[object] = []
    with descriptors_unchanged(), served_by(run_dir / "s", Fake(hold, no_listeners)), Client(run_dir / "s") as client:
        other = threading.Thread(target=lambda: results.append(client.list()))
        other.start()
        assert asked.wait(PATIENCE_S)
        with pytest.raises(LocalProtocolError, match="this Client is in use: another thread"):
            client.list()
        may_answer.set()
        other.join(PATIENCE_S)
        assert results == [[]], "the first thread is not disturbed"
        assert client.list() == [], "one after the other is fine"


def test_a_client_that_another_thread_closes_ends_its_call_first(run_dir: Path) -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def hold(connection: socket.socket, request: Json) -> None:
        asked.set()
        assert may_answer.wait(PATIENCE_S)
        answer(connection, request, [])

    results: list[object] = []
    with descriptors_unchanged(), served_by(run_dir / "s", Fake(hold)):
        client = Client(run_dir / "s")
        other = threading.Thread(target=lambda: results.append(client.list()))
        other.start()
        assert asked.wait(PATIENCE_S)
        connection = client._session._connection
        client.close()
        assert connection is not None
        assert connection.socket.fileno() >= 0, "its number could be another file's before the call has ended"
        may_answer.set()
        other.join(PATIENCE_S)
    assert results == [[]]


def test_a_closed_client_says_so(binder: Binder) -> None:
    client = Client(binder.socket_path)
    client.close()
    client.close()
    with pytest.raises(LocalProtocolError, match="this Client is closed"):
        client.list()


def test_a_client_in_a_fork_says_so_and_the_parent_goes_on(binder: Binder) -> None:
    script = """
import os, sys, multibinder
with multibinder.Client() as client:
    child = os.fork()
    if not child:
        try:
            client.list()
        except multibinder.LocalProtocolError as error:
            print(error, flush=True)
            client.close()
            print(multibinder.Client().list(), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print(client.list())
"""
    said = subprocess.check_output(
        [sys.executable, "-c", script],
        env=clean_environment({"MULTIBINDER_SOCK": str(binder.socket_path)}),
        text=True,
        timeout=PATIENCE_S,
    )
    first, *rest = said.splitlines()
    assert "of which process" in first
    assert "is a fork" in first
    assert rest == ["[]", "[]"]


def test_no_limit_is_the_timeout_none(run_dir: Path) -> None:
    asked = threading.Event()

    def hold(connection: socket.socket, request: Json) -> None:
        asked.set()
        time.sleep(0.2)  # longer than the least timeout that the kernel takes
        answer(connection, request, [])

    with served_by(run_dir / "s", Fake(hold)), Client(run_dir / "s", timeout=None) as client:
        assert client.timeout == float("inf")
        assert client.list() == []
        wait_until(asked.is_set, "it was asked")
