"""``multibinder.asyncio`` on the loop that MULTIBINDER_LOOP names: ``asyncio`` by default, or ``uvloop``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

import multibinder.asyncio
from tests.support import PATIENCE_S, clean_environment, descriptors_unchanged
from tests.support.certificate import client_context, server_context
from tests.support.port import Port

T = TypeVar("T")


@pytest.fixture
def port() -> Iterator[Port]:
    with contextlib.closing(Port()) as port:
        yield port


@pytest.fixture(autouse=True)
def nothing_is_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Signals, descriptors and the log of asyncio's debug mode are as before."""
    caplog.set_level(logging.INFO)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    for number, handler in before.items():
        signal.signal(number, handler)
    said = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    # "Executing ... took" says that this machine is busy.
    assert [line for line in said if not line.startswith(("Using selector", "Executing"))] == []


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in debug mode. No task, descriptor or signal handler is left then."""

    async def checked() -> T:
        try:
            return await asyncio.wait_for(main, PATIENCE_S)
        finally:
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if os.environ.get("MULTIBINDER_LOOP", "asyncio") == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop
        factory().close()  # the first loop of a process opens descriptors for all of them
    with descriptors_unchanged(), asyncio.Runner(debug=True, loop_factory=factory) as runner:
        return runner.run(checked())


async def wait_until(condition: Callable[[], object], promise: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"not within {PATIENCE_S:g} s: {promise}")


async def handles(number: signal.Signals) -> None:
    """Wait until the process would not end by a signal."""
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    before = signal.getsignal(number)
    await wait_until(lambda: signal.getsignal(number) not in (*defaults, before), f"{number.name} is handled")


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"answer to " + await reader.readline())


async def read(client: socket.socket) -> bytes:
    """Read to the end of the connection, and close it."""
    with client:
        return b"".join([chunk async for chunk in _chunks(client)])


async def _chunks(client: socket.socket) -> Any:
    client.setblocking(False)
    while chunk := await asyncio.get_running_loop().sock_recv(client, 65536):
        yield chunk


class Handlers:
    """Handlers that answer when they are allowed to, and what became of them."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.may_answer = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.begun += 1
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        await answer(reader, writer)


async def start(
    handler: Callable[..., Awaitable[None] | None], *ports: Port, drain: float = PATIENCE_S, **options: Any
) -> multibinder.asyncio.Server:
    listeners = [port.listener() for port in ports]
    return await multibinder.asyncio.start_server(handler, listeners, drain=drain, **options)


def test_a_client_gets_all_that_a_handler_wrote_before_it_returned(port: Port) -> None:
    async def large(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 5_000_000)

    async def main() -> None:
        async with await start(large, port) as server:
            assert server.is_serving()
            client = port.connect()
            await wait_until(lambda: port.waiting() == 0, "the client is accepted")
            server.close()
            assert not server.is_serving()
            closed = asyncio.create_task(server.wait_closed())
            assert await asyncio.wait([closed], timeout=0.05) == (set(), {closed})
            assert len(await read(client)) == 5_000_000
            await closed

    run(main())


def test_close_leaves_clients_that_wait_to_the_next_copy(port: Port) -> None:
    async def main() -> None:
        server = await start(answer, port)
        server.close()
        clients = [port.connect(send=b"%d\n" % number) for number in range(5)]
        await server.wait_closed()
        assert port.waiting() == 5
        async with await start(answer, port):
            assert [await read(client) for client in clients] == [b"answer to %d\n" % number for number in range(5)]

    run(main())


def test_no_client_of_a_burst_at_the_moment_of_the_signal_is_lost(port: Port) -> None:
    """Each is answered, or waits for the next copy. asyncio's own Server drops those that it has just accepted."""

    async def main() -> None:
        server = await start(answer, port)
        loop = asyncio.get_running_loop()
        clients: list[socket.socket] = []

        def burst(first: int) -> None:
            clients.extend(port.connect(send=b"%d\n" % number) for number in range(first, first + 5))

        def stop() -> None:
            burst(0)
            os.kill(os.getpid(), signal.SIGTERM)
            loop.call_soon(burst, 5)

        serving = asyncio.create_task(server.serve_forever())
        await handles(signal.SIGTERM)
        loop.call_soon(stop)
        await serving
        async with await start(answer, port):
            assert [await read(client) for client in clients] == [b"answer to %d\n" % number for number in range(10)]

    run(main())


def test_a_client_that_was_accepted_in_the_same_turn_is_served(port: Port) -> None:
    async def main() -> None:
        server = await start(answer, port)
        client = port.connect(send=b"x\n")
        await wait_until(lambda: port.waiting() == 0, "the client is accepted")
        server.close()
        assert await read(client) == b"answer to x\n"
        await server.wait_closed()

    run(main())


def test_clients_that_are_served_are_finished_before_wait_closed_returns(port: Port) -> None:
    async def main() -> None:
        handlers = Handlers()
        server = await start(handlers, port)
        client = port.connect(send=b"x\n")
        await wait_until(lambda: handlers.begun, "the handler begins")
        closed = asyncio.create_task(server.wait_closed())
        server.close()
        assert await asyncio.wait([closed], timeout=0.05) == (set(), {closed})
        handlers.may_answer.set()
        await closed
        assert await read(client) == b"answer to x\n"

    run(main())


def test_a_handler_can_see_that_the_server_stops(port: Port) -> None:
    async def main() -> None:
        async def until_it_stops(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"begun")
            await server.stopping.wait()

        server = await start(until_it_stops, port)
        client = port.connect()
        assert await asyncio.get_running_loop().run_in_executor(None, client.recv, 5) == b"begun"
        server.close()
        await server.wait_closed()
        assert await read(client) == b""

    run(main())


def test_a_handler_that_is_no_coroutine_function_keeps_its_connection(port: Port) -> None:
    async def main() -> None:
        writers: list[asyncio.StreamWriter] = []

        def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)

        server = await start(keep, port)
        client = port.connect()
        await wait_until(lambda: writers, "the handler was called")
        server.close()
        writers[0].write(b"later")
        writers[0].close()
        await server.wait_closed()
        assert await read(client) == b"later"

    run(main())


def test_handlers_are_cancelled_when_the_drain_is_over(port: Port, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        handlers = Handlers()
        server = await start(handlers, port, drain=0.05)
        silent = [port.connect() for _ in range(3)]
        await wait_until(lambda: handlers.begun == 3, "the handlers begin")
        server.close()
        await server.wait_closed()
        assert handlers.cancelled == 3
        for client in silent:
            with contextlib.suppress(ConnectionResetError):
                assert await read(client) == b""

    run(main())
    assert "3 client(s) are not finished, and are cancelled" in caplog.text


def test_what_a_cancelled_handler_writes_at_its_end_is_sent(port: Port) -> None:
    async def main() -> None:
        texts = [b"goodbye", b"x" * 21_000_000]

        async def says_goodbye(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            text = texts.pop(0)
            try:
                await reader.readline()
            except asyncio.CancelledError:
                writer.write(text)
                raise

        server = await start(says_goodbye, port, drain=0)
        client, reads_nothing = port.connect(), port.connect()
        await wait_until(lambda: not texts, "the handlers begin")
        server.close()
        closed = asyncio.create_task(server.wait_closed())
        assert await read(client) == b"goodbye"
        await closed
        assert len(await read(reads_nothing)) < 21_000_000

    run(main())


def test_a_client_that_is_cancelled_before_its_first_step_leaves_no_descriptor(port: Port) -> None:
    async def main() -> None:
        server = await start(answer, port, drain=0)
        client = port.connect()

        server._acceptors[0]._accept()
        server.close()
        server._cancel_clients()
        await server.wait_closed()
        with contextlib.suppress(ConnectionResetError):
            assert await read(client) == b""

    run(main())


def test_a_handler_that_never_ends_does_not_keep_wait_closed_waiting(
    port: Port, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        cancelled = 0
        may_end = asyncio.Event()

        async def stubborn(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal cancelled
            while not may_end.is_set():
                try:
                    await may_end.wait()
                except asyncio.CancelledError:
                    cancelled += 1

        server = await start(stubborn, port, drain=0)
        with port.connect():
            await wait_until(lambda: server._clients, "the client is accepted")
            await asyncio.sleep(0.01)
            server.close()
            await server.wait_closed()
            assert cancelled == 1
            may_end.set()
            await wait_until(lambda: not server._clients, "the handler ends")

    run(main())
    assert "goes on in spite of its cancellation" in caplog.text
    assert "stubborn" in caplog.text


def test_an_exception_of_a_handler_is_reported_as_asyncio_does_it(port: Port) -> None:
    async def main() -> list[dict[str, Any]]:
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

        async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            raise ValueError("on purpose")

        async with await start(fail, port):
            assert await read(port.connect()) == b""
        return reported

    [context] = run(main())
    assert context["message"] == "Unhandled exception in client_connected_cb"
    assert str(context["exception"]) == "on purpose"
    assert context["transport"] is not None


def test_a_released_listener_stops_the_server_with_one_line(
    port: Port, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, run_dir: Path
) -> None:
    async def main() -> None:
        handlers = Handlers()
        server = await start(handlers, port)
        serving = asyncio.create_task(server.serve_forever())
        client = port.connect(send=b"x\n")
        await wait_until(lambda: handlers.begun, "the handler begins")
        port.release()
        await wait_until(lambda: not server.is_serving(), "the server stops")
        handlers.may_answer.set()
        await serving
        assert await read(client) == b"answer to x\n"

    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as supervisor:
        supervisor.bind(str(run_dir / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(run_dir / "n"))
        run(main())
        assert [supervisor.recv(100), supervisor.recv(100)] == [b"READY=1", b"STOPPING=1"]
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_a_server_goes_on_with_its_other_listeners(port: Port) -> None:
    async def main() -> None:
        with contextlib.closing(Port("127.0.0.2")) as other:
            server = await start(answer, port, other)
            assert [listener.getsockname() for listener in server.sockets] == [port.address, other.address]
            port.release()
            await wait_until(lambda: len(server.sockets) == 1, "the released listener is gone")
            assert await read(other.connect(send=b"x\n")) == b"answer to x\n"
            server.close()
            await server.wait_closed()

    run(main())


def test_a_shortage_of_descriptors_is_waited_for_without_a_busy_loop(port: Port) -> None:
    async def main() -> None:
        reported: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context))
        handlers = Handlers()
        async with await start(handlers, port):
            first, second = port.connect(send=b"1\n"), port.connect(send=b"2\n")
            before = resource.getrlimit(resource.RLIMIT_NOFILE)
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, before[1]))  # one more descriptor
            try:
                await wait_until(lambda: reported, "the shortage is reported")
                await asyncio.sleep(0.1)
                assert [context["message"] for context in reported] == ["socket.accept() out of system resource"]
                assert handlers.begun == 1
                # The end of the first client makes room for the second one, before the delay is over.
                began = loop.time()
                handlers.may_answer.set()
                assert await read(first) == b"answer to 1\n"
                assert await read(second) == b"answer to 2\n"
                assert loop.time() - began < 0.8
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)

    run(main())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_closes_all_servers_of_the_loop(port: Port, number: signal.Signals) -> None:
    async def main() -> None:
        with contextlib.closing(Port()) as other:
            one, two = await start(answer, port), await start(answer, other)
            serving = [asyncio.create_task(server.serve_forever()) for server in (one, two)]
            await handles(number)
            os.kill(os.getpid(), number)
            await asyncio.wait(serving)
            assert not one.is_serving()
            assert not two.is_serving()
            assert signal.getsignal(number) == signal.SIG_DFL

    run(main())


def test_without_a_signal_the_handlers_are_those_from_before(port: Port) -> None:
    async def main() -> None:
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        server = await start(answer, port)
        asyncio.get_running_loop().call_later(0.01, server.close)
        await server.serve_forever()
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before

    run(main())


def test_a_signal_that_the_process_ignores_stays_ignored(port: Port) -> None:
    async def main() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        server = await start(answer, port)
        serving = asyncio.create_task(server.serve_forever())
        await handles(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait([serving], timeout=0.05)
        assert server.is_serving()
        server.close()
        await serving

    run(main())


_STUCK = """
import asyncio, os, signal, sys, time, multibinder.asyncio, socket
async def main():
    def stuck(reader, writer):
        os.kill(os.getpid(), signal.SIGTERM)
        if sys.argv[1] == "before the loop looks":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
    listener = socket.create_server(("127.0.0.1", 0))
    server = await multibinder.asyncio.start_server(stuck, listener)
    client = socket.create_connection(listener.getsockname())
    await server.serve_forever()
asyncio.run(main())
"""


@pytest.mark.parametrize("when", ["before the loop looks", "while clients are finished"])
def test_a_second_signal_ends_the_process_at_once(when: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _STUCK, when], env=clean_environment({}), check=False, timeout=PATIENCE_S
    )
    assert done.returncode == -signal.SIGTERM


def test_a_cancellation_closes_the_server_and_finishes_its_clients(port: Port) -> None:
    async def main() -> None:
        handlers = Handlers()
        serving = asyncio.create_task((await start(handlers, port)).serve_forever())
        client = port.connect(send=b"x\n")
        await wait_until(lambda: handlers.begun, "the handler begins")
        serving.cancel()
        await asyncio.sleep(0.02)
        assert not serving.done()
        handlers.may_answer.set()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert await read(client) == b"answer to x\n"

    run(main())


def test_a_second_cancellation_cancels_the_clients(port: Port) -> None:
    async def main() -> None:
        handlers = Handlers()
        server = await start(handlers, port)
        serving = asyncio.create_task(server.serve_forever())
        with port.connect(send=b"x\n"):
            await wait_until(lambda: handlers.begun, "the handler begins")
            for _ in range(2):
                serving.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await serving
            await server.wait_closed()
        assert handlers.cancelled == 1

    run(main())


def test_tls(port: Port, run_dir: Path) -> None:
    async def main() -> None:
        async with await start(answer, port, ssl=server_context(run_dir), ssl_shutdown_timeout=1.0) as server:
            with port.connect(send=b"this is no TLS\n") as nonsense:
                nonsense.setblocking(False)
            reader, writer = await asyncio.open_connection(*port.address, ssl=client_context())
            # The client was accepted. It is served after close(), too.
            server.close()
            writer.write(b"x\n")
            assert await reader.read() == b"answer to x\n"
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    run(main())


def test_a_client_in_the_middle_of_its_tls_handshake_is_cancelled_too(port: Port, run_dir: Path) -> None:
    async def main() -> None:
        server = await start(answer, port, ssl=server_context(run_dir), drain=0.05)
        silent = port.connect()
        await wait_until(lambda: server._clients, "the client is accepted")
        await asyncio.sleep(0.01)
        server.close()
        await server.wait_closed()
        with contextlib.suppress(ConnectionResetError):
            assert await read(silent) == b""

    run(main())


def test_ready_names_the_main_process_where_it_replaces_one(
    port: Port, monkeypatch: pytest.MonkeyPatch, run_dir: Path
) -> None:
    async def main() -> None:
        async with await start(answer, port) as server:
            server.ready()
            monkeypatch.setenv("MAINPID", "1")  # as systemd sets it for ExecReload=
            server.ready()
            server.ready(is_main=False)
            monkeypatch.setenv("MAINPID", str(os.getpid()))
            server.ready()
            server.ready(is_main=True)

    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as supervisor:
        supervisor.bind(str(run_dir / "n"))
        supervisor.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(run_dir / "n"))
        run(main())
        main_process = f"READY=1\nMAINPID={os.getpid()}"
        said = [supervisor.recv(100).decode() for _ in range(5)]
        assert said == ["READY=1", main_process, "READY=1", "READY=1", main_process]
        with pytest.raises(BlockingIOError):  # no STOPPING=1: another copy may serve
            supervisor.recv(100)


def test_arguments_that_cannot_be_served_are_refused(port: Port, run_dir: Path) -> None:
    async def main() -> None:
        start_server = multibinder.asyncio.start_server
        with pytest.raises(ValueError, match="no listener was given"):
            await start_server(answer, [])
        with port.listener() as listener:
            with pytest.raises(ValueError, match="drain -1"):
                await start_server(answer, listener, drain=-1)
            with pytest.raises(ValueError, match="only with ssl"):
                await start_server(answer, listener, ssl_handshake_timeout=1)
            with pytest.raises(ValueError, match=r"give what multibinder\.bind"):
                await start_server(answer, [listener, 3])  # type: ignore[list-item]
            with (
                server_context(run_dir).wrap_socket(port.listener(), server_side=True) as wrapped,
                pytest.raises(ValueError, match="context as ssl="),
            ):
                await start_server(answer, wrapped)

    run(main())
