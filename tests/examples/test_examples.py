from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import multibinder
from multibinder.kernel.accept_queue import accept_queue
from tests.support import PATIENCE_S, Binder, clean_environment, wait_until
from tests.support.campaign import times

EXAMPLES = Path(__file__).parents[2] / "examples"
ECHO = "echo_server.py"
HTTP = "http_server.py"
PORT = 8000

Address = tuple[str, int]


class Example:
    """An example as a subprocess, from its start until the end of the test."""

    def __init__(self, script: str, log_path: Path, environment: dict[str, str], *options: str) -> None:
        self._log_path = log_path
        with log_path.open("wb") as log:
            self.process = subprocess.Popen(
                # In development mode the log shows a socket or a task that is left open.
                [sys.executable, "-X", "dev", EXAMPLES / script, *options],
                env=clean_environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return f"--- log of {self.process.args!r}:\n{self._log_path.read_text()}"

    def wait_for_log(self, text: str) -> None:
        def said() -> bool:
            if text not in self.log() and self.process.poll() is not None:
                pytest.fail(f"the example ended with {self.process.returncode}\n{self.log()}")
            return text in self.log()

        wait_until(said, f"the log says {text!r}", log=self.log)

    def terminate(self) -> None:
        """Send SIGTERM, and wait until the example accepts no more clients."""
        self.process.terminate()
        self.wait_for_log("stopping:")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def exit_status(self) -> int:
        return self.process.wait(PATIENCE_S)


StartExample = Callable[..., Example]


@pytest.fixture
def address(host: str) -> Address:
    return host, PORT


@pytest.fixture
def start_example(binder: Binder, address: Address, run_dir: Path) -> Iterator[StartExample]:
    """Return a function that starts an example on the test's address and waits until it is ready."""
    started: list[Example] = []

    def start(script: str, *options: str) -> Example:
        listen = ("--host", address[0], "--port", str(address[1]))
        environment = {"MULTIBINDER_SOCK": str(binder.socket_path)}
        example = Example(script, run_dir / f"example-{len(started)}.log", environment, *listen, *options)
        started.append(example)
        example.wait_for_log("ready:")
        return example

    yield start
    for example in started:
        if example.process.poll() is None:
            example.kill()
        sys.stderr.write(example.log())
    for example in started:
        assert "Traceback" not in example.log()
        assert "ResourceWarning" not in example.log()


def connect(address: Address) -> socket.socket:
    return socket.create_connection(address, PATIENCE_S)


def receive_all(client: socket.socket) -> str:
    """Receive until the server closes the connection."""
    return b"".join(iter(lambda: client.recv(4096), b"")).decode()


def get(address: Address) -> str:
    """Return the body of one answer on a new connection. Raises on any failure."""
    with connect(address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        return body_of(receive_all(client))


def body_of(response: str) -> str:
    head, _, body = response.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK\r\n"), response
    assert f"\r\nContent-Length: {len(body)}\r\n" in head, response
    return body


def echo(address: Address) -> str:
    with connect(address) as client:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        return receive_all(client)


class Requests:
    """Make requests one after the other in a thread while the block runs."""

    def __init__(self, address: Address, ask: Callable[[Address], str] = get) -> None:
        self.bodies: Counter[str] = Counter()
        self.failures: list[BaseException] = []
        self._address = address
        self._ask = ask
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.bodies[self._ask(self._address)] += 1
            except (OSError, AssertionError) as error:
                self.failures.append(error)

    def wait_for_more_from(self, text: str, count: int = 50) -> None:
        """Wait until ``count`` more answers contain ``text``."""

        def answers() -> int:
            return sum(times for body, times in self.bodies.copy().items() if text in body)

        enough = answers() + count
        wait_until(lambda: answers() >= enough, f"{text!r} answers", log=lambda: f"{self.bodies} {self.failures}")

    def __enter__(self) -> Requests:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(PATIENCE_S)


def test_every_example_is_tested_here_and_explained_in_the_readme() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {ECHO, HTTP}
    readme = (EXAMPLES / "README.md").read_text()
    assert f"\n## {ECHO}\n" in readme
    assert f"\n## {HTTP}\n" in readme


@pytest.mark.parametrize("script", [ECHO, HTTP])
def test_an_example_without_a_binder_says_what_to_set(script: str, run_dir: Path) -> None:
    example = Example(script, run_dir / "log", {})
    assert example.exit_status() == 1
    assert "MULTIBINDER_SOCK is not set" in example.log()
    assert "Traceback" not in example.log()


def test_the_echo_server_sends_back_what_it_gets(start_example: StartExample, address: Address) -> None:
    start_example(ECHO)
    with connect(address) as one, connect(address) as other:
        for client in (other, one, other):
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"


def test_the_http_server_answers_with_its_pid_and_version(start_example: StartExample, address: Address) -> None:
    example = start_example(HTTP, "--version-text", "blue")
    assert get(address) == f"pid {example.pid} version blue\n"


def test_the_http_server_answers_a_head_that_comes_in_pieces(start_example: StartExample, address: Address) -> None:
    start_example(HTTP)
    with connect(address) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET / HTTP/1.1\r\n\r\n":
            client.send(bytes([byte]))
        assert "version 1" in body_of(receive_all(client))


def test_the_http_server_refuses_methods_other_than_get(start_example: StartExample, address: Address) -> None:
    start_example(HTTP)
    with connect(address) as client:
        client.sendall(b"DELETE / HTTP/1.1\r\n\r\n")
        assert receive_all(client).startswith("HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\n")


def test_the_http_server_survives_clients_that_leave_or_talk_nonsense(
    start_example: StartExample, address: Address
) -> None:
    start_example(HTTP)
    connect(address).close()
    with connect(address) as client:
        client.sendall(b"GET / HT")
    with connect(address) as client, contextlib.suppress(ConnectionError):
        client.sendall(b"x" * 200_000)
        assert receive_all(client) == ""
    assert "version 1" in get(address)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("script", [ECHO, HTTP])
def test_an_example_exits_with_0_on_a_signal_to_stop(
    start_example: StartExample, script: str, number: signal.Signals
) -> None:
    example = start_example(script)
    example.process.send_signal(number)
    assert example.exit_status() == 0


def test_the_echo_server_finishes_its_clients_and_leaves_new_ones_to_the_next_copy(
    start_example: StartExample, address: Address
) -> None:
    old = start_example(ECHO)
    with connect(address) as first, connect(address) as second:
        first.sendall(b"one")
        assert first.recv(100) == b"one"
        # (Accepted before SIGTERM: clients are accepted in the order in which they came.)
        second.sendall(b"two")
        assert second.recv(100) == b"two"
        old.terminate()
        with connect(address) as late:
            late.sendall(b"late")
            first.sendall(b"still here")
            assert first.recv(100) == b"still here"
            first.close()
            second.close()
            assert old.exit_status() == 0
            start_example(ECHO)
            assert late.recv(100) == b"late"


def test_a_second_sigterm_ends_the_echo_server_at_once(start_example: StartExample, address: Address) -> None:
    example = start_example(ECHO)
    with connect(address) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        example.terminate()
        example.process.terminate()
        assert example.exit_status() == -signal.SIGTERM
        assert client.recv(100) == b""


@pytest.mark.parametrize(("script", "ask"), [(ECHO, echo), (HTTP, get)])
def test_a_client_that_sends_nothing_holds_up_the_end_for_the_drain_only(
    start_example: StartExample, address: Address, script: str, ask: Callable[[Address], str]
) -> None:
    example = start_example(script, "--drain", "0.2")
    with connect(address) as silent:
        assert ask(address)  # so the client before this one was accepted
        example.terminate()
        assert example.exit_status() == 0
        assert receive_all(silent) == ""


@pytest.mark.parametrize(("script", "ask"), [(ECHO, echo), (HTTP, get)])
def test_an_example_whose_port_is_released_finishes_its_clients_and_ends(
    binder: Binder, start_example: StartExample, address: Address, script: str, ask: Callable[[Address], str]
) -> None:
    example = start_example(script)
    with connect(address) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        assert ask(address)  # so the client before this one was accepted
        with multibinder.Client(binder.socket_path) as asking:
            [released] = asking.release([address], owner=script.partition("_")[0])
        assert released.outcome == "closed"
        example.wait_for_log("was released")
        client.sendall(b"\r\n")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client)
    assert example.exit_status() == 0
    assert example.log().count("released") == 1


def test_an_http_request_that_is_open_at_sigterm_is_answered(start_example: StartExample, address: Address) -> None:
    old = start_example(HTTP, "--version-text", "old")
    with connect(address) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        assert "version old" in get(address)  # so the client before this one was accepted
        old.terminate()
        start_example(HTTP, "--version-text", "new")
        client.sendall(b"\r\n")
        assert "version old" in body_of(receive_all(client))
    assert old.exit_status() == 0
    assert "version new" in get(address)


ROUNDS = times(sample=2, whole=10)


def test_an_upgrade_under_load_loses_no_request(start_example: StartExample, address: Address) -> None:
    running = start_example(HTTP, "--version-text", "0")
    with Requests(address) as requests, Requests(address) as others:
        for number in range(1, ROUNDS + 1):
            requests.wait_for_more_from(f"version {number - 1}\n")
            new = start_example(HTTP, "--version-text", str(number))
            others.wait_for_more_from("version ")  # both copies answer
            running.process.terminate()
            assert running.exit_status() == 0
            running = new
        requests.wait_for_more_from(f"version {ROUNDS}\n")
    assert requests.failures + others.failures == []
    assert sum(requests.bodies.values()) >= 50 * ROUNDS


@pytest.mark.parametrize("way", ["the new copy first", "the old copy first"])
@pytest.mark.parametrize(("script", "ask"), [(ECHO, echo), (HTTP, get)])
def test_a_restart_under_load_loses_no_client(
    start_example: StartExample, address: Address, script: str, ask: Callable[[Address], str], way: str
) -> None:
    running = start_example(script)
    with contextlib.ExitStack() as load:
        clients = [load.enter_context(Requests(address, ask)) for _ in range(4)]
        for _ in range(ROUNDS):
            for client in clients:
                client.wait_for_more_from("", 10)
            new = start_example(script) if way == "the new copy first" else None
            running.process.terminate()
            assert running.exit_status() == 0
            running = new or start_example(script)
        for client in clients:
            client.wait_for_more_from("", 10)
    assert [failure for client in clients for failure in client.failures] == []
    if script == ECHO:
        assert {answer for client in clients for answer in client.bodies} == {"hello"}


@pytest.mark.parametrize(("script", "ask"), [(ECHO, echo), (HTTP, get)])
def test_clients_wait_for_another_copy_after_the_only_one_is_killed(
    binder: Binder, start_example: StartExample, address: Address, script: str, ask: Callable[[Address], str]
) -> None:
    start_example(script).kill()
    answers: list[str] = []
    failures: list[OSError] = []

    def run() -> None:
        try:
            answers.append(ask(address))
        except OSError as error:
            failures.append(error)

    clients = [threading.Thread(target=run) for _ in range(20)]
    for client in clients:
        client.start()
    with multibinder.bind(*address, socket_path=binder.socket_path) as listener:
        wait_until(lambda: failures or accept_queue(listener).length == 20, "all clients wait")
    assert (answers, failures) == ([], [])
    start_example(script)
    for client in clients:
        client.join(PATIENCE_S)
    assert failures == []
    assert len(answers) == 20
