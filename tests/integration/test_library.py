"""``import multibinder`` gives a program its listeners, or an error that says why not."""

from __future__ import annotations

import array
import contextlib
import errno
import gc
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import multibinder
from multibinder import (
    BindError,
    BinderTimeout,
    BinderUnavailable,
    Client,
    ConfigurationError,
    ListenerReleased,
    ListenerSpec,
    LocalProtocolError,
    Options,
    RemoteProtocolError,
    SharedListener,
    TcpAddress,
)
from tests.support import (
    PATIENCE_S,
    Binder,
    Json,
    can_connect,
    clean_environment,
    descriptors,
    descriptors_unchanged,
    is_nonblocking,
    later,
    served_by,
    wait_until,
)


@pytest.fixture(autouse=True)
def no_binder_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULTIBINDER_SOCK", raising=False)


# Listeners


def test_bind_gives_a_listener_that_accepts(binder: Binder, host: str) -> None:
    with (
        descriptors_unchanged(),
        multibinder.bind(host, 8000, socket_path=binder.socket_path) as listener,
        socket.create_connection((host, 8000)) as client,
    ):
        connection, peer = listener.accept()
        connection.close()
        assert peer == client.getsockname()


def test_the_environment_says_where_the_binder_is(binder: Binder, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIBINDER_SOCK", str(binder.socket_path))
    with multibinder.bind(host, 8000) as listener:
        assert listener.getsockname() == (host, 8000)


@pytest.mark.parametrize("inheritable", [False, True])
def test_a_listener_is_inherited_only_where_that_was_asked_for(binder: Binder, host: str, inheritable: bool) -> None:
    with multibinder.bind(host, 8000, socket_path=binder.socket_path, inheritable=inheritable) as listener:
        assert listener.get_inheritable() == inheritable
        link = f"/proc/self/fd/{listener.fileno()}"
        script = f"import os; print(os.path.lexists({link!r}) and os.readlink({link!r}))"
        seen = subprocess.check_output(
            [sys.executable, "-c", script], close_fds=False, text=True, env=clean_environment()
        )
        assert (seen.strip() == os.readlink(link)) == inheritable


def test_accept_waits_although_another_holder_set_o_nonblock(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        [other] = client.bind([(host, 8000)])
        [ours] = client.bind([(host, 8000)])
    with other, ours:
        other.setblocking(False)
        assert is_nonblocking(ours)
        with later(0.1, lambda: can_connect((host, 8000))):
            ours.accept()[0].close()


def test_bind_many_gives_them_in_the_order_asked_for(binder: Binder, host: str) -> None:
    wanted: list[ListenerSpec | TcpAddress | tuple[str, int]] = [
        (host, 8002),
        TcpAddress.of(host, 8000),
        ListenerSpec(TcpAddress.of(host, 8001), Options(backlog=5)),
    ]
    listeners = multibinder.bind_many(wanted, socket_path=binder.socket_path, owner="me")
    assert [listener.getsockname()[1] for listener in listeners] == [8002, 8000, 8001]
    with Client(binder.socket_path) as client:
        assert [(status.address, status.owners) for status in client.list()] == [
            (f"{host}:{port}", ["me"]) for port in (8002, 8000, 8001)
        ]
        assert client.list()[2].backlog == 5
    for listener in listeners:
        listener.close()


def test_bind_many_of_no_addresses_returns_no_listeners(binder: Binder) -> None:
    assert multibinder.bind_many([], socket_path=binder.socket_path) == []


def test_port_0_with_a_name_is_the_same_port_after_a_restart(binder: Binder) -> None:
    def port() -> int:
        with multibinder.bind("127.0.0.1", 0, name="web", socket_path=binder.socket_path) as listener:
            number: int = listener.getsockname()[1]
            return number

    assert port() == port() != 0


def test_a_release_returns_the_outcome_for_each_listener(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        for listener in client.bind([(host, 8000), (host, 8001)], owner="a") + client.bind([(host, 8001)], owner="b"):
            listener.close()
        released = client.release([(host, 8000), (host, 8001), (host, 8002)], owner="a")
    assert [(one.outcome, one.owners) for one in released] == [("closed", []), ("kept", ["b"]), ("absent", [])]


def test_a_release_with_a_name_never_closes_another_address(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        client.bind([ListenerSpec(TcpAddress.of(host, 8000), Options(name="web"))])[0].close()
        with contextlib.suppress(multibinder.RequestError):
            client.release([ListenerSpec(TcpAddress.of(host, 9999), Options(name="web"))])
        assert [status.address for status in client.list()] == [f"{host}:8000"]


def test_an_invalid_address_is_refused_before_a_request_is_sent(binder: Binder) -> None:
    with Client(binder.socket_path) as client, pytest.raises(LocalProtocolError, match="neither an address"):
        client.bind([80])  # type: ignore[list-item]


def test_a_text_names_listeners_too(binder: Binder, host: str) -> None:
    path = binder.socket_path
    with multibinder.bind(f"tcp@{host}:8000", backlog=7, owner="a", socket_path=path) as listener:
        assert str(listener.address) == f"{host}:8000"
    listeners = multibinder.bind_many([f"{host}:8001-8003,{host}:8004"], owner="a", socket_path=path)
    assert [listener.getsockname()[1] for listener in listeners] == [8001, 8002, 8003, 8004]
    with Client(path) as client:
        assert client.list()[0].backlog == 7
    kept = multibinder.sync("a", [f"{host}:8000-8001"], socket_path=path)
    with Client(path) as client:
        assert [each.address for each in client.list()] == [f"{host}:8000", f"{host}:8001"]
    assert multibinder.release(f"{host}:8000", owner="a", socket_path=path).outcome == "closed"
    for each in (*listeners, *kept):
        each.close()


def test_bind_of_several_listeners_says_what_returns_them(host: str) -> None:
    with pytest.raises(LocalProtocolError, match=r"names 3 listeners: call bind_many\(\[…\]\)"):
        multibinder.bind(f"{host}:8000-8002", socket_path="/nowhere")


def test_a_bind_error_has_the_errno_and_the_address(binder: Binder) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BindError) as refusal:
            multibinder.bind(*taken.getsockname(), socket_path=binder.socket_path)
        assert refusal.value.errno == errno.EADDRINUSE
        assert refusal.value.address == "{}:{}".format(*taken.getsockname())


def test_more_listeners_than_we_may_open_is_an_error_that_says_so_and_leaks_nothing(binder: Binder, host: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Client(binder.socket_path) as client, descriptors_unchanged():
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(descriptors()) + 40, limits[1]))
            with pytest.raises(RemoteProtocolError, match="RLIMIT_NOFILE"):
                client.bind([(host, 8000 + number) for number in range(200)])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# Without a binder


def test_without_a_configured_binder_the_error_says_what_to_set() -> None:
    for attempt in (
        lambda: multibinder.bind("127.0.0.1", 0),
        lambda: multibinder.bind_many([("127.0.0.1", 0)]),
        Client,
    ):
        with pytest.raises(ConfigurationError, match="MULTIBINDER_SOCK is not set: set it to the path of the binder's"):
            attempt()


def test_fallback_binds_here_and_warns() -> None:
    with pytest.warns(RuntimeWarning, match="MULTIBINDER_SOCK is not set: binding in this process") as warned:
        listener = multibinder.bind("127.0.0.1", 0, fallback=True)
    with listener:
        assert can_connect(listener.getsockname())
        assert not listener.get_inheritable()
    assert [Path(warning.filename).name for warning in warned] == ["test_library.py"], (
        "the warning names the line of the caller"
    )


def test_fallback_of_several_points_at_the_caller_too() -> None:
    with pytest.warns(RuntimeWarning, match="binding in this process") as warned:
        listeners = multibinder.bind_many([("127.0.0.1", 0)], fallback=True, inheritable=True)
    for listener in listeners:
        assert listener.get_inheritable()
        listener.close()
    assert [Path(warning.filename).name for warning in warned] == ["test_library.py"]


def test_fallback_is_all_or_nothing_too(host: str) -> None:
    with socket.socket() as taken:
        taken.bind((host, 8001))
        taken.listen()
        with descriptors_unchanged(), pytest.warns(RuntimeWarning), pytest.raises(BindError) as refusal:
            multibinder.bind_many([(host, 8000), (host, 8001)], fallback=True)
        assert refusal.value.errno == errno.EADDRINUSE
        assert not can_connect((host, 8000))


def test_fallback_with_a_binder_in_the_environment_uses_the_binder(
    binder: Binder, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTIBINDER_SOCK", str(binder.socket_path))
    multibinder.bind(host, 8000, fallback=True).close()
    assert can_connect((host, 8000))


def test_a_missing_socket_is_an_unavailable_binder(run_dir: Path) -> None:
    with descriptors_unchanged(), pytest.raises(BinderUnavailable, match="there is no such socket; is 'multibinder"):
        Client(run_dir / "mb.sock")


def test_a_socket_that_we_may_not_use_is_an_unavailable_binder(run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(run_dir / "mb.sock"))
        with pytest.raises(BinderUnavailable, match="no process listens there any more"):
            Client(run_dir / "mb.sock")


@pytest.mark.parametrize("what", ["file", "directory", "datagram socket"])
def test_what_is_no_stream_socket_is_named(run_dir: Path, what: str) -> None:
    path = run_dir / "mb.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        if what == "file":
            path.touch()
        elif what == "directory":
            path.mkdir()
        else:
            sock.bind(str(path))
        expected = "it is a socket of another type" if what == "datagram socket" else "it is not a socket"
        with pytest.raises(BinderUnavailable, match=f"cannot reach the binder at {path}: {expected}"):
            Client(path)


def test_another_programs_socket_is_named_with_what_to_do(run_dir: Path) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"Unknown command: maybe one of these\n")

    with (
        served_by(run_dir / "s", serve),
        Client(run_dir / "s") as client,
        pytest.raises(RemoteProtocolError) as refusal,
    ):
        client.list()
    assert str(refusal.value) == (
        f"{run_dir}/s is not the control socket of a binder: it answers b'Unknown command: maybe one of these\\n'; "
        "MULTIBINDER_SOCK or --socket has to name that of 'multibinder serve'"
    )


def test_a_killed_binder_is_an_unavailable_one(binder: Binder) -> None:
    with Client(binder.socket_path) as client:
        client.hello()
        binder.process.kill()
        binder.wait()
        with pytest.raises(BinderUnavailable, match="no process listens there any more"):
            client.hello()
    with pytest.raises(BinderUnavailable, match="no process listens there any more"):
        Client(binder.socket_path)


def test_a_binder_that_is_killed_while_we_wait_is_an_unavailable_one(binder: Binder, host: str) -> None:
    with descriptors_unchanged(), Client(binder.socket_path) as client:
        binder.suspend()
        with (
            later(0.2, binder.process.kill),
            pytest.raises(BinderUnavailable, match="closed the connection without an answer") as failure,
        ):
            client.release([(host, 8000)])
        assert not isinstance(failure.value, BinderTimeout)
    binder.wait()


def test_a_hung_binder_is_a_timeout(binder: Binder) -> None:
    binder.suspend()
    started = time.monotonic()
    with Client(binder.socket_path, timeout=0.3) as client:
        with pytest.raises(BinderTimeout, match=r"did not answer 'hello' within 0\.3 s") as failure:
            client.hello()
        assert isinstance(failure.value, TimeoutError)
    assert 0.25 < time.monotonic() - started < 3


def test_the_timeout_is_for_the_call_as_a_whole(run_dir: Path) -> None:
    def trickle(connection: socket.socket) -> None:
        connection.recv(65536)
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(b" ")
                connection.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(1):
                        return

    started = time.monotonic()
    with (
        served_by(run_dir / "s", trickle),
        Client(run_dir / "s", timeout=0.5) as client,
        pytest.raises(BinderTimeout),
    ):
        client.hello()
    assert time.monotonic() - started < 3


def test_a_binder_with_a_full_queue_is_waited_for(run_dir: Path) -> None:
    # Linux answers EAGAIN to a non-blocking connect() when an AF_UNIX queue is full (unix(7)); that is no refusal.
    with socket.socket(socket.AF_UNIX) as listening, contextlib.ExitStack() as waiting:
        listening.bind(str(run_dir / "s"))
        listening.listen(0)
        waiting.enter_context(Client(run_dir / "s"))

        def serve_them() -> None:
            for _ in range(2):
                listening.accept()[0].close()

        with later(0.2, serve_them):
            Client(run_dir / "s", timeout=PATIENCE_S).close()


def test_a_binder_whose_queue_stays_full_is_a_timeout(run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(run_dir / "s"))
        listening.listen(0)
        with Client(run_dir / "s"), descriptors_unchanged(), pytest.raises(BinderTimeout):
            Client(run_dir / "s", timeout=0.3)


# A server that sends something that was not asked for


def reply_with(*rights: int, result: object = True) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        while message := connection.recv(65536):
            request: Json = json.loads(message)
            text = json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}).encode() + b"\n"
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", rights))] if rights else []
            connection.sendmsg([text], ancillary)

    return serve


@pytest.fixture
def listener(host: str) -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind((host, 8000))
        sock.listen()
        yield sock


def handoffs(descriptors: int, host: str, *ports: int) -> Json:
    return {
        "descriptors": descriptors,
        "listeners": [{"address": f"{host}:{port}", "backlog": 1, "created": False} for port in ports],
    }


def assert_refused(
    path: Path, serve: Callable[[socket.socket], None], complaint: str, *wanted: tuple[str, int]
) -> None:
    """Assert that an answer of this server is a protocol error, and that no descriptor of it stays open."""
    with descriptors_unchanged(), served_by(path, serve):
        with Client(path, timeout=PATIENCE_S) as client, pytest.raises(RemoteProtocolError, match=complaint):
            client.bind(wanted)
        gc.collect()  # a descriptor that only the garbage collector closes is a leak, and gives a ResourceWarning


def test_a_listener_on_another_port_is_refused(run_dir: Path, listener: socket.socket, host: str) -> None:
    serve = reply_with(listener.fileno())
    assert_refused(run_dir / "s", serve, f"asked for {host}:8001, but .* listens on {host}:8000", (host, 8001))


def test_a_socket_that_does_not_listen_is_refused(run_dir: Path, host: str) -> None:
    with socket.socket() as sock:
        sock.bind((host, 8000))
        complaint = f"is bound to, without listening, {host}:8000"
        assert_refused(run_dir / "s", reply_with(sock.fileno()), complaint, (host, 8000))


def test_a_datagram_socket_of_the_same_address_is_refused(run_dir: Path, host: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 8000))
        assert_refused(run_dir / "s", reply_with(sock.fileno()), f"asked for {host}:8000, but|no TCP", (host, 8000))


def test_a_unix_listener_is_refused(run_dir: Path, host: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(run_dir / "u"))
        sock.listen()
        assert_refused(run_dir / "s", reply_with(sock.fileno()), "is no TCP socket", (host, 8000))


def test_a_descriptor_that_is_no_socket_is_refused(run_dir: Path, host: str) -> None:
    with open(os.devnull) as null:
        assert_refused(run_dir / "s", reply_with(null.fileno()), "is of no use", (host, 8000))


def test_an_answer_without_a_descriptor_is_refused(run_dir: Path, host: str) -> None:
    complaint = "asked for 1 listeners; 1 were announced, 0 came"
    assert_refused(run_dir / "s", reply_with(), complaint, (host, 8000))
    (run_dir / "s").unlink()
    assert_refused(run_dir / "s", reply_with(result=handoffs(1, host, 8000)), complaint, (host, 8000))


def test_more_descriptors_than_were_announced_are_refused(run_dir: Path, listener: socket.socket, host: str) -> None:
    serve = reply_with(*[listener.fileno()] * 3)
    assert_refused(run_dir / "s", serve, "asked for 1 listeners; 1 were announced, 3 came", (host, 8000))


def test_more_listeners_than_were_asked_for_are_refused(run_dir: Path, listener: socket.socket, host: str) -> None:
    serve = reply_with(*[listener.fileno()] * 2, result=handoffs(2, host, 8000, 8000))
    assert_refused(run_dir / "s", serve, "asked for 1 listeners, 2 were announced", (host, 8000))


def test_a_wrong_socket_before_right_ones_leaks_none_of_them(run_dir: Path, listener: socket.socket, host: str) -> None:
    serve = reply_with(*[listener.fileno()] * 3, result=handoffs(3, host, 8001, 8000, 8000))
    complaint = f"asked for {host}:8001, but .* listens on {host}:8000"
    assert_refused(run_dir / "s", serve, complaint, (host, 8001), (host, 8000), (host, 8000))


def test_a_wrong_socket_after_right_ones_leaks_none_of_them(run_dir: Path, listener: socket.socket, host: str) -> None:
    serve = reply_with(*[listener.fileno()] * 3, result=handoffs(3, host, 8000, 8000, 8001))
    complaint = f"asked for {host}:8001, but .* listens on {host}:8000"
    assert_refused(run_dir / "s", serve, complaint, (host, 8000), (host, 8000), (host, 8001))


@pytest.mark.parametrize("announced", [0, -1])
def test_an_answer_that_announces_nothing_is_refused_and_not_asked_for_again(
    run_dir: Path, host: str, announced: int
) -> None:
    answers = 0

    def serve(connection: socket.socket) -> None:
        nonlocal answers
        while message := connection.recv(65536):
            answers += 1
            result = handoffs(announced, host) if answers < 100 else "enough"
            reply = {"jsonrpc": "2.0", "id": json.loads(message)["id"], "result": result}
            connection.sendall(json.dumps(reply).encode() + b"\n")

    assert_refused(run_dir / "s", serve, "asked for 1 listeners", (host, 8000))
    assert answers == 1


def test_fewer_listeners_than_were_asked_for_are_refused(run_dir: Path, listener: socket.socket, host: str) -> None:
    # All or nothing: only the Ruby program's bare ``true`` stands for the first of several.
    serve = reply_with(listener.fileno(), result=handoffs(1, host, 8000))
    assert_refused(run_dir / "s", serve, "asked for 2 listeners", (host, 8000), (host, 8000))


@pytest.mark.parametrize("result", [None, False, "yes", 7, [], {"descriptors": "1", "listeners": []}])
def test_a_result_that_makes_no_sense_is_refused(run_dir: Path, host: str, result: object) -> None:
    assert_refused(run_dir / "s", reply_with(result=result), "a result that makes no sense", (host, 8000))


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is not the control socket of a binder: it answers b'HTTP"),
        (b"{nonsense}\n", "is not the control socket of a binder"),
        (b'{"id":"\xff"}\n', "is not the control socket of a binder"),
        (b'{"jsonrpc":"2.0","id":"other","result":true}\n', "asked with id 1, answered with id 'other'"),
        (b'{"jsonrpc":"2.0","id":"1","error":"no"}\n', "is not the control socket of a binder"),
    ],
)
def test_an_invalid_reply_is_refused(run_dir: Path, host: str, reply: bytes, complaint: str) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(reply)
        connection.recv(65536)

    assert_refused(run_dir / "s", serve, complaint, (host, 8000))


def test_descriptors_that_came_with_a_refusal_are_closed(run_dir: Path, listener: socket.socket, host: str) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        text = b'{"jsonrpc":"2.0","id":"1","error":{"code":10000,"message":"Could not bind: no"}}\n'
        socket.send_fds(connection, [text], [listener.fileno()] * 3)
        connection.recv(65536)

    with (
        descriptors_unchanged(),
        served_by(run_dir / "s", serve),
        Client(run_dir / "s") as client,
        pytest.raises(BindError, match="Could not bind: no"),
    ):
        client.bind([(host, 8000)])


def test_descriptors_of_an_answer_that_is_cut_off_are_closed(run_dir: Path, listener: socket.socket, host: str) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        socket.send_fds(connection, [b'{"jsonrpc":"2.0","id":"1",'], [listener.fileno()] * 3)

    with (
        descriptors_unchanged(),
        served_by(run_dir / "s", serve),
        Client(run_dir / "s") as client,
        pytest.raises(BinderUnavailable),
    ):
        client.bind([(host, 8000)])


def test_bind_returns_a_listener_that_copes_with_its_other_holders(binder: Binder, host: str) -> None:
    with multibinder.bind(host, 8000, socket_path=binder.socket_path) as listener:
        assert isinstance(listener, SharedListener)


def test_bind_in_non_blocking_mode_serves_programs_that_select_first(binder: Binder, host: str) -> None:
    path = binder.socket_path
    with Client(path) as client:
        listeners = [
            multibinder.bind(host, 8000, socket_path=path, blocking=False),
            *multibinder.bind_many([(host, 8000)], socket_path=path, blocking=False),
            *client.bind([(host, 8000)], blocking=False),
        ]
    for listener in listeners:
        with listener:
            assert listener.gettimeout() == 0.0
            with pytest.raises(BlockingIOError):
                listener.accept()


def test_a_listener_of_the_fallback_is_of_the_same_type() -> None:
    with pytest.warns(RuntimeWarning, match="binding in this process"):
        listener = multibinder.bind("127.0.0.1", 0, fallback=True, blocking=False)
    with listener:
        assert isinstance(listener, SharedListener)
        assert can_connect(listener.getsockname())
        listener.accept()[0].close()


@pytest.mark.parametrize("blocking", [True, False])
def test_accept_tells_that_the_binder_has_released_the_listener(binder: Binder, host: str, blocking: bool) -> None:
    with multibinder.bind(host, 8000, blocking=blocking, socket_path=binder.socket_path) as listener:

        def release() -> None:
            with Client(binder.socket_path) as client:
                client.release([(host, 8000)])

        if blocking:
            with later(0.1, release), pytest.raises(ListenerReleased, match=rf"on {host}:8000 was released"):
                listener.accept()
        else:
            release()
            with pytest.raises(ListenerReleased):
                listener.accept()
        assert listener.released


def test_an_accept_that_waits_outlives_the_shutdown_by_a_program_without_the_library(binder: Binder, host: str) -> None:
    with multibinder.bind(host, 8000, socket_path=binder.socket_path) as listener:
        listener.settimeout(PATIENCE_S)
        plain = socket.socket(fileno=os.dup(listener.fileno()))

        def shut_down_and_connect() -> None:
            plain.shutdown(socket.SHUT_RDWR)
            wait_until(lambda: can_connect((host, 8000)), "the binder repairs the listener")

        with plain, later(0.1, shut_down_and_connect):
            listener.accept()[0].close()
        assert not listener.released
