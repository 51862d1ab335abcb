"""The checks of readiness see the new copy, and no other process, with real servers."""

from __future__ import annotations

import os
import resource
import socket
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multibinder.launch.errors import UsageError
from multibinder.launch.run.readiness import acceptor
from multibinder.launch.run.readiness.check import Check
from multibinder.launch.run.readiness.choice import check_of
from multibinder.launch.run.settings import Readiness
from multibinder.launch.styles.passed import Passed
from tests.run.copy_of_a_program import Copy, copies, listener, see_ready, see_unready
from tests.support.certificate import server_context
from tests.support.processes import descriptors_unchanged

Start = Callable[..., Copy]

#: An HTTP server on the first descriptor. ANSWER is what it sends to each client that has sent a request.
SERVER = """
    import socket, sys, time
    server = socket.socket(fileno=int(sys.argv[-1]))
    while True:
        client, _ = server.accept()
        text = b""
        while b"\\r\\n\\r\\n" not in text:
            more = client.recv(65536)
            if not more:
                break
            text += more
        else:
            ANSWER
        client.close()
"""
GOOD = r'client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")'


def server(answer: str = GOOD) -> str:
    return SERVER.replace("ANSWER", answer)


@pytest.fixture
def start() -> Iterator[Start]:
    with copies() as start:
        yield start


@pytest.fixture
def web(host: str) -> Iterator[Passed]:
    passed = listener(host)
    yield passed
    os.close(passed.source)


@pytest.fixture
def private() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def at_ready(path: str = "/health") -> Readiness:
    return Readiness(http=f"http://{{ready}}{path}")


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        r'client.sendall(b"HTTP/1.0 204 No Content\r\n\r\n")',
        r'client.sendall(b"HTTP/1.1 301 Moved\r\nLocation: https://elsewhere/\r\n\r\n")',
        r'client.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")',
        r'[(client.sendall(bytes([byte])), time.sleep(0.01)) for byte in b"HTTP/1.1 200 OK\r\n\r\n"]',
    ],
    ids=["200", "204", "301", "103 before 200", "in pieces"],
)
def test_an_answer_of_2xx_or_3xx_is_ready(answer: str, start: Start, private: socket.socket) -> None:
    copy = start(server(answer), ready=private)
    with descriptors_unchanged():
        assert "it answered" in see_ready(check_of(at_ready()), copy)


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (r'client.sendall(b"HTTP/1.1 500 Internal Server Error\r\n\r\n")', "it answered 500"),
        (r'client.sendall(b"HTTP/1.1 404 Not Found\r\n\r\n")', "it answered 404"),
        (r'client.sendall(b"SSH-2.0-OpenSSH\r\n")', "which is no HTTP"),
        (r"client.sendall(bytes(range(256)) * 1000)", "which is no HTTP"),
        ("pass", "it closed the connection without an answer"),
        (r'client.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 5000)', "no answer"),
    ],
    ids=["500", "404", "another protocol", "garbage", "close", "provisional answers without end"],
)
def test_another_answer_is_not_ready_and_is_said(answer: str, seen: str, start: Start, private: socket.socket) -> None:
    copy = start(server(answer), ready=private)
    with descriptors_unchanged():
        if seen == "no answer":
            see_unready(check_of(at_ready()), copy, "it ")
        else:
            see_unready(check_of(at_ready()), copy, seen)


def test_a_server_that_becomes_good_is_ready_then(start: Start, private: socket.socket, run_dir: Path) -> None:
    good = run_dir / "good"
    status = f"b'200' if __import__('os').path.exists({str(good)!r}) else b'500'"
    copy = start(server(rf'client.sendall(b"HTTP/1.1 " + ({status}) + b" x\r\n\r\n")'), ready=private)
    check = check_of(at_ready())
    see_unready(check, copy, "it answered 500")
    good.touch()
    assert see_ready(check, copy).endswith("it answered 200")


def test_a_server_that_never_accepts_or_never_answers_is_not_ready(
    start: Start, private: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multibinder.launch.run.readiness.http._ANSWER_S", 0.2)
    see_unready(check_of(at_ready()), start("import time; time.sleep(60)", ready=private), "no answer within 0.2 s")
    see_unready(check_of(at_ready()), start(server("time.sleep(60)"), ready=private), "no answer within 0.2 s")


def test_the_old_copy_answers_on_the_shared_address_and_does_not_count(start: Start, web: Passed) -> None:
    start(server(), [web])
    new = start("import time; time.sleep(60)", [web])
    check = check_of(Readiness(http="http://{web}/"))
    assert "{ready} is an address of this copy alone" in see_unready(check, new, "connections to {web}")


def test_the_new_copy_is_found_on_the_shared_address_beside_an_old_one(start: Start, web: Passed) -> None:
    start(server(r'client.sendall(b"HTTP/1.1 500 Old\r\n\r\n")'), [web])
    new = start(server(), [web])
    with descriptors_unchanged():
        assert see_ready(check_of(Readiness(http=f"http://{web.host_and_port}/")), new).endswith("it answered 200")


def test_a_child_of_the_copy_that_accepts_is_the_copy(start: Start, web: Passed) -> None:
    code = "import os, time\npid = os.fork()\nif pid: time.sleep(60)\n"
    copy = start(code + textwrap.dedent(server()), [web])
    assert see_ready(check_of(Readiness(http="http://{web}/")), copy).endswith("it answered 200")


def test_an_old_copy_with_the_event_loop_of_asyncio_does_not_take_every_connection(start: Start, web: Passed) -> None:
    code = """
        import asyncio, socket, sys
        async def serve(reader, writer):
            await reader.readuntil(b"\\r\\n\\r\\n")
            writer.write(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
            writer.close()
        async def main():
            server = await asyncio.start_server(serve, sock=socket.socket(fileno=int(sys.argv[-1])))
            await server.serve_forever()
        asyncio.run(main())
    """
    start(code, [web])
    new = start(code, [web])
    assert see_ready(check_of(Readiness(http="http://{web}/")), new).endswith("it answered 200")


def test_a_listener_that_waits_for_the_first_byte_is_reached(start: Start, web: Passed) -> None:
    with socket.socket(fileno=os.dup(web.source)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
    copy = start(server(), [web])
    assert see_ready(check_of(Readiness(http="http://{web}/")), copy).endswith("it answered 200")


def test_ipv6(start: Start) -> None:
    passed = listener("::1", family=socket.AF_INET6)
    try:
        copy = start(server(), [passed])
        assert see_ready(check_of(Readiness(http=f"http://{passed.host_and_port}/")), copy).endswith("200")
        assert see_ready(check_of(Readiness(tcp=passed.host_and_port)), copy)
    finally:
        os.close(passed.source)


def test_unix_sockets_also_tell_who_accepted(start: Start, run_dir: Path) -> None:
    path = run_dir / "web.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        passed = Passed({"endpoint": f"unix@{path}"}, "web", sock.fileno())
        old = start(server(), [passed])
        new = start("import time; time.sleep(60)", [passed])
        for check in (Readiness(tcp=f"unix@{path}"), Readiness(tcp=str(path)), Readiness(tcp="{web}")):
            assert see_ready(check_of(check), old)
            see_unready(check_of(check), new, "another process accepted")
        url = f"http+unix://{str(path).replace('/', '%2F')}/health"
        assert see_ready(check_of(Readiness(http=url)), old).endswith("it answered 200")
        assert see_ready(check_of(Readiness(http="http://{web}/")), old).endswith("it answered 200")


def test_https_does_not_verify_the_certificate(
    start: Start, private: socket.socket, web: Passed, run_dir: Path
) -> None:
    server_context(run_dir)
    code = f"""
        import socket, ssl, sys
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain({str(run_dir / "certificate.pem")!r}, {str(run_dir / "key.pem")!r})
        server = socket.socket(fileno=int(sys.argv[-1]))
        while True:
            client, _ = server.accept()
            try:
                with context.wrap_socket(client, server_side=True) as secure:
                    secure.recv(65536)
                    secure.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
            except OSError:
                pass
    """
    with descriptors_unchanged():
        copy = start(code, ready=private)
        assert see_ready(check_of(Readiness(http="https://{ready}/")), copy).endswith("it answered 200")
        copy.close()
    shared = start(code, [web])
    assert see_ready(check_of(Readiness(http="https://{web}/")), shared).endswith("it answered 200")
    shared.close()
    code = (
        "import socket, sys; server = socket.socket(fileno=int(sys.argv[1]))\nwhile True: server.accept()[0].send(b'!')"
    )
    plain = start(code, ready=private)
    see_unready(check_of(Readiness(http="https://{ready}/")), plain, "the connection broke")


def test_tcp_is_ready_when_the_copy_accepts_not_when_the_kernel_does(start: Start, private: socket.socket) -> None:
    check = check_of(Readiness(tcp="{ready}"))
    idle = start("import time; time.sleep(60)", ready=private)
    see_unready_soon(check, idle)
    accepting = start(server(), ready=private)
    assert see_ready(check, accepting) == "it accepted a connection to {ready}"


def see_unready_soon(check: Check, copy: Copy) -> None:

    before, acceptor.ACCEPT_S = acceptor.ACCEPT_S, 0.2
    try:
        see_unready(check, copy, "no process accepts at {ready}")
    finally:
        acceptor.ACCEPT_S = before


def test_a_port_that_nothing_listens_on_is_said_and_tried_again(start: Start, host: str) -> None:
    with socket.socket() as sock:
        sock.bind((host, 0))
        port = sock.getsockname()[1]
    check = check_of(Readiness(tcp=f"{host}:{port}"))
    code = "import socket, time; time.sleep(0.3); server = socket.create_server(ADDRESS); kept = []"
    code += "\nwhile True: kept.append(server.accept())"
    copy = start(code.replace("ADDRESS", repr((host, port))))
    see_unready(check, copy, "Connection refused")
    assert see_ready(check, copy)


def test_without_a_free_descriptor_a_check_tries_on(start: Start, web: Passed) -> None:
    copy = start(server(), [web])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for readiness in (Readiness(http="http://{web}/"), Readiness(tcp="{web}"), Readiness()):
        check = check_of(readiness)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            if readiness != Readiness():
                see_unready(check, copy, "Too many open files")
            else:
                see_unready(check, copy, "")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert see_ready(check, copy)


def test_a_line_of_the_output_is_ready_also_one_without_an_end(start: Start) -> None:
    code = "import time; print('starting', flush=True); print('Ready on 80', end='', flush=True); time.sleep(60)"
    pattern = r"[Rr]eady on \d+"
    copy = start(code, pattern=pattern)
    assert see_ready(check_of(Readiness(line=pattern)), copy) == "it wrote 'Ready on 80'"


def test_a_time_without_an_exit(start: Start) -> None:
    copy = start("import time; time.sleep(60)")
    assert see_ready(check_of(Readiness(after_s=0.1)), copy) == "it ran for 0.1 s"


WAITS = {
    "epoll": "p = select.epoll(); p.register(s, 1); p.poll()",
    "accept": "s.accept()",
    "poll": "p = select.poll(); p.register(s, 1); p.poll()",
    "select": "select.select([s], [], [])",
    "poll with interruptions": "p = select.poll(); p.register(s, 1)\nwhile True: p.poll(100)",
    "in a child": "os.fork() or select.select([s], [], []); time.sleep(60)",
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_without_a_check_a_copy_that_waits_for_clients_is_ready(wait: str, start: Start, web: Passed) -> None:
    copy = start(f"import os, select, socket, sys, time\ns = socket.socket(fileno=int(sys.argv[1]))\n{wait}", [web])
    assert see_ready(check_of(Readiness()), copy) == "it waits for clients"


def test_without_a_check_a_copy_that_waits_on_one_of_two_listeners_is_not_seen_ready(start: Start, web: Passed) -> None:
    other = listener(web.slot["host"], "other")
    try:
        copy = start("import socket, sys; socket.socket(fileno=int(sys.argv[1])).accept()", [web, other])
        check = check_of(Readiness())
        assert str(other) in see_unready(check, copy, "it is not seen to wait for clients on")
        assert "name a check" in see_ready(check_of(Readiness()), copy)
    finally:
        os.close(other.source)


@pytest.mark.parametrize(
    "readiness",
    [
        Readiness(http="ftp://127.0.0.1/"),
        Readiness(http="http://example.com/"),
        Readiness(http="http://127.0.0.1:99999/"),
        Readiness(http="http://127.0.0.1:80/a b"),
        Readiness(tcp="127.0.0.1"),
        Readiness(tcp="example.com:80"),
        Readiness(tcp=""),
        Readiness(line="("),
    ],
    ids=str,
)
def test_a_check_that_cannot_be_is_refused(readiness: Readiness) -> None:
    with pytest.raises(UsageError):
        check_of(readiness)
