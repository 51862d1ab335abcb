"""The wire of github/multibinder 0.0.5, in both directions.

Its client (lib/multibinder.rb): one object without a newline in one sendmsg(2), one recvmsg(2), JSON, the first
descriptor. Its server (bin/multibinder): one connection at a time, one request for each recvmsg(2), answers without a
newline.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import multibinder
from multibinder import BindError, Client, RequestError
from tests.support import (
    Binder,
    Json,
    RawClient,
    can_connect,
    descriptors_unchanged,
    own_host,
    served_by,
)

RUBY_ID = "5f0c7a0e-6a0e-4bb0-9d4e-0e0f5b1f7c3a"


def ruby_request(host: str, port: int, options: str = ',"backlog":1000') -> bytes:
    return (
        f'{{"jsonrpc":"2.0","method":"bind","id":"{RUBY_ID}","params":[{{"address":"{host}","port":{port}{options}}}]}}'
    ).encode()


# The Ruby client, our binder


@pytest.mark.parametrize("options", [',"backlog":1000', ""])
def test_the_ruby_client_gets_a_listener_from_our_binder(binder: Binder, host: str, options: str) -> None:
    with RawClient(binder.socket_path) as client:
        client.send(ruby_request(host, 8000, options))
        message, rights = client.receive()
        reply = json.loads(message)
        assert reply["jsonrpc"] == "2.0"
        assert reply["id"] == RUBY_ID
        assert reply["result"] not in (None, False)
        assert "error" not in reply
        assert len(rights) == 1
        with socket.socket(fileno=os.dup(rights[0])) as listener, socket.create_connection((host, 8000)) as caller:
            assert listener.getsockname() == (host, 8000)
            connection, peer = listener.accept()
            connection.close()
            assert peer == caller.getsockname()


def test_the_ruby_client_gets_the_same_listener_again(binder: Binder, host: str) -> None:
    cookies = set()
    for _ in range(3):
        with RawClient(binder.socket_path) as client:
            client.send(ruby_request(host, 8000))
            _, rights = client.receive()
            with socket.socket(fileno=os.dup(rights[0])) as listener:
                cookies.add(listener.getsockopt(socket.SOL_SOCKET, 57, 8))
    assert len(cookies) == 1


def test_the_ruby_client_gets_a_refusal_that_it_understands(binder: Binder) -> None:
    with socket.socket() as taken, RawClient(binder.socket_path) as client:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        client.send(ruby_request("127.0.0.1", taken.getsockname()[1]))
        message, rights = client.receive()
    reply = json.loads(message)
    assert (reply["jsonrpc"], reply["id"], rights) == ("2.0", RUBY_ID, [])
    assert reply["error"]["code"] == 10000
    assert reply["error"]["message"].startswith("Could not bind: ")
    assert "result" not in reply


def test_the_ruby_client_may_take_all_the_time_between_two_requests(binder: Binder, host: str) -> None:
    with RawClient(binder.socket_path) as client:
        for port in (8000, 8001):
            client.send(ruby_request(host, port))
            message, rights = client.receive()
            assert json.loads(message)["id"] == RUBY_ID
            assert len(rights) == 1


def test_a_ruby_request_in_two_pieces_is_one_request(binder: Binder, host: str) -> None:
    with RawClient(binder.socket_path) as client:
        text = ruby_request(host, 8000)
        client.send(text[:60])
        client.send(text[60:])
        message, rights = client.receive()
    assert json.loads(message)["id"] == RUBY_ID
    assert len(rights) == 1


# Our client, the Ruby server


class RubyServer:
    """Serve a connection as bin/multibinder does. The sockets stay open, as in the original."""

    def __init__(self) -> None:
        self.sockets: dict[tuple[str, int], socket.socket] = {}
        self.requests: list[Json] = []

    def __call__(self, connection: socket.socket) -> None:
        while message := connection.recv(65536):
            request = json.loads(message)  # one request for each recvmsg, or an exception that ends the connection
            self.requests.append(request)
            if request["method"] == "bind":
                self.bind(connection, request)
            else:
                connection.sendall(b'{"error":{"code":-32601,"message":"Method not found"}}')

    def bind(self, connection: socket.socket, request: Json) -> None:
        wanted = request["params"][0]
        address = (wanted["address"], wanted["port"])
        try:
            if address not in self.sockets:
                sock = socket.socket()
                try:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind(address)
                    sock.listen(wanted.get("backlog") or 1000)
                except OSError:
                    sock.close()
                    raise
                self.sockets[address] = sock
        except OSError as error:
            refusal = {"code": 10000, "message": f"Could not bind: {error.strerror}", "backtrace": ["bin/multibinder"]}
            connection.sendall(json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": refusal}).encode())
            return
        answer = json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": True}, separators=(",", ":"))
        rights = array.array("i", [self.sockets[address].fileno()])
        connection.sendmsg([answer.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    def close(self) -> None:
        for sock in self.sockets.values():
            sock.close()


@pytest.fixture
def ruby(run_dir: Path) -> Iterator[tuple[Path, RubyServer]]:
    server = RubyServer()
    with served_by(run_dir / "rb.sock", server):
        yield run_dir / "rb.sock", server
    server.close()


def test_our_client_gets_a_listener_from_the_ruby_server(ruby: tuple[Path, RubyServer], host: str) -> None:
    path, server = ruby
    with descriptors_unchanged(), multibinder.bind(host, 8000, socket_path=path) as listener:
        assert listener.getsockname() == (host, 8000)
        assert not listener.get_inheritable()
        with socket.create_connection((host, 8000)) as caller:
            connection, peer = listener.accept()
            connection.close()
            assert peer == caller.getsockname()
        with server.sockets[host, 8000]:
            del server.sockets[host, 8000]
    assert [list(request["params"][0]) for request in server.requests] == [["address", "port"]]


def test_our_client_gets_several_listeners_from_the_ruby_server_one_after_the_other(
    ruby: tuple[Path, RubyServer],
) -> None:
    path, server = ruby
    wanted = [(own_host(), port) for port in (8000, 8001, 8002)]
    listeners = multibinder.bind_many(wanted, socket_path=path)
    assert [listener.getsockname() for listener in listeners] == wanted
    assert all(can_connect(address) for address in wanted)
    for listener in listeners:
        listener.close()
    assert len(server.requests) == 3


def test_our_client_gets_the_same_listener_twice_in_one_call(ruby: tuple[Path, RubyServer], host: str) -> None:
    path, _ = ruby
    one, other = multibinder.bind_many([(host, 8000), (host, 8000)], socket_path=path)
    with one, other:
        assert one.getsockopt(socket.SOL_SOCKET, 57, 8) == other.getsockopt(socket.SOL_SOCKET, 57, 8)


def test_our_client_passes_on_the_refusal_of_the_ruby_server_and_keeps_nothing(
    ruby: tuple[Path, RubyServer], host: str
) -> None:
    path, _server = ruby
    with socket.socket() as taken:
        taken.bind((host, 8001))
        taken.listen()
        with Client(path) as client:
            with pytest.raises(BindError, match="Could not bind: Address already in use") as refusal:
                client.bind([(host, 8000), (host, 8001)])
            assert refusal.value.errno is None
            with client.bind([(host, 8000)])[0] as listener:
                assert listener.getsockname() == (host, 8000)


def test_hello_to_the_ruby_server_is_protocol_0_and_the_connection_stays_good(
    ruby: tuple[Path, RubyServer], host: str
) -> None:
    path, _ = ruby
    with Client(path) as client:
        hello = client.hello()
        assert (hello.name, hello.protocol, hello.capabilities) == ("unknown", 0, ["bind"])
        client.bind([(host, 8000)])[0].close()


def test_a_method_that_the_ruby_server_does_not_know_is_an_error_that_says_so(ruby: tuple[Path, RubyServer]) -> None:
    path, _ = ruby
    with Client(path) as client, pytest.raises(RequestError, match="Method not found") as refusal:
        client.list()
    assert refusal.value.code == -32601
