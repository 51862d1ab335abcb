"""The binder refuses each bad request with its message, and goes on serving."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from multibinder import BindError, Client, ListenerSpec, Options, RequestError, TcpAddress
from tests.conftest import StartBinder
from tests.support import (
    Binder,
    RawClient,
    ask,
    can_connect,
    request,
    require,
    require_ipv6,
    unprivileged_port,
    wait_until,
    without_privileges,
)
from tests.support.installation import for_everybody


@pytest.fixture(scope="module")
def refusing() -> Iterator[tuple[Binder, int]]:
    """A binder for many tests, and how many descriptors it has: each test leaves it as it was."""
    with tempfile.TemporaryDirectory(prefix="mb-") as directory, Binder(Path(directory)) as binder:
        binder.wait_until_ready()
        yield binder, len(binder.descriptors())


@pytest.fixture
def survivor(refusing: tuple[Binder, int]) -> Iterator[Binder]:
    """A binder that must serve other clients after the test, without listeners or descriptors of refused requests."""
    with unharmed(*refusing):
        yield refusing[0]


@contextlib.contextmanager
def unharmed(binder: Binder, descriptors: int) -> Iterator[None]:
    yield
    with Client(binder.socket_path) as client:
        assert client.list() == []
        assert client.hello().pid == binder.pid
    with RawClient(binder.socket_path) as other:
        other.ask(request("hello"))
        wait_until(
            lambda: len(binder.descriptors()) == descriptors + 1,
            "the binder has closed the earlier connections, and nothing else is open",
            log=binder.log,
        )


@pytest.fixture
def taken() -> Iterator[tuple[str, int]]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()


def bind_request(**element: Any) -> bytes:
    return request("bind", {"address": "127.0.0.1", "port": 0, **element})


@pytest.mark.parametrize(
    ("text", "code", "complaint"),
    [
        pytest.param(b"{nonsense}\n", -32700, "not JSON: JSON is malformed", id="not JSON"),
        pytest.param(b"{nonsense\n", -32700, "not JSON: JSON is malformed", id="not JSON, and no end"),
        pytest.param(b'{"method":"bind"\n', -32700, "not JSON: ", id="JSON that stops"),
        pytest.param(b'{"method":"\xff\xfe","id":1}\n', -32700, "not JSON: ", id="a method that is not UTF-8"),
        pytest.param(b'{"method":"hello","id":"\xff"}', -32700, "not JSON: ", id="an id that is not UTF-8"),
        pytest.param(
            b'{"method":"bind","id":1,"params":[{"address":"\xff","port":80}]}\n',
            -32602,
            "Invalid params: ",
            id="an address that is not UTF-8",
        ),
        pytest.param(b'{"a":' * 9999 + b"1" + b"}" * 9999 + b"\n", -32700, "not JSON: nested too deeply", id="deep"),
        pytest.param(b"{}\n", -32600, "not a JSON-RPC request: Object missing required field `method`", id="no method"),
        pytest.param(
            b'{"method":"bind"}\n', -32600, "not a JSON-RPC request: Object missing required field", id="no id"
        ),
        pytest.param(b'{"method":7,"id":1}\n', -32600, "Expected `str`, got `int` - at `$.method`", id="method 7"),
        pytest.param(b'{"method":"bind","id":[]}\n', -32600, "got `array` - at `$.id`", id="id []"),
        pytest.param(
            request("dance"),
            -32601,
            "Method not found: 'dance'; this binder knows hello, bind, check, list, release",
            id="unknown method",
        ),
        pytest.param(b'{"method":"bind","id":1}\n', -32602, "params is empty", id="no params"),
        pytest.param(b'{"method":"bind","id":1,"params":[]}\n', -32602, "Invalid params: params is empty", id="empty"),
        pytest.param(b'{"method":"bind","id":1,"params":7}\n', -32602, "Expected `array`, got `int`", id="params 7"),
        pytest.param(
            bind_request(port="80"), -32602, "Expected `int`, got `str` - at `params[0].port`", id="port '80'"
        ),
        pytest.param(bind_request(address=80), -32602, "got `int` - at `params[0].address`", id="address 80"),
        pytest.param(
            bind_request(bakclog=5),
            -32602,
            "Invalid params: Object contains unknown field `bakclog` - at `params[0]`; "
            "a listener takes address and port, or endpoint; owner, shard, netns, shards, backlog, v6only, name",
            id="unknown option",
        ),
        pytest.param(
            bind_request(port=70000),
            -32602,
            "Invalid params: params[0]: port 70000 is out of range: a TCP port is a number from 0 to 65535",
            id="port 70000",
        ),
        pytest.param(bind_request(port=-1), -32602, "params[0]: port -1 is out of range", id="port -1"),
        pytest.param(bind_request(port=10**30), -32602, "is out of range", id="port 10**30"),
        pytest.param(
            bind_request(address="localhost"),
            -32602,
            "Invalid params: params[0]: host 'localhost' is a name: give a numeric address. A name can mean several "
            "addresses, and another one after the next DNS answer; a listener must not depend on that",
            id="host name",
        ),
        pytest.param(
            bind_request(address="fe80::1%eth0"),
            -32602,
            "Invalid params: params[0]: host 'fe80::1%eth0' has an IPv6 scope, which is not supported",
            id="IPv6 scope",
        ),
        pytest.param(bind_request(address="*"), -32602, "host '*' is ambiguous: write 0.0.0.0", id="host *"),
        pytest.param(
            bind_request(address="1.2.3.300"), -32602, "'1.2.3.300' is not a valid IP address", id="1.2.3.300"
        ),
        pytest.param(bind_request(backlog=0), -32602, "params[0]: backlog 0 is out of range", id="backlog 0"),
        pytest.param(bind_request(v6only=True), -32602, "v6only has a meaning for IPv6 addresses only", id="v6only"),
        pytest.param(bind_request(owner="a b"), -32602, "params[0]: owner 'a b' is not usable", id="owner"),
        pytest.param(bind_request(name="\n"), -32602, "params[0]: name '\\n' is not usable", id="name"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", -32600, "Invalid request: not a JSON object: b'GET / HTTP", id="HTTP"),
        pytest.param(b"[" + request("hello")[:-1] + b"]\n", -32600, "JSON-RPC batches are not supported", id="batch"),
        pytest.param(
            b'{"method":"' + b"x" * 600_000 + b'","id":1}\n',
            -32600,
            "Invalid request: a message has more than 524288 bytes",
            id="600 kB",
        ),
    ],
)
def test_a_bad_request_is_refused_with_its_reason(survivor: Binder, text: bytes, code: int, complaint: str) -> None:
    reply = ask(survivor.socket_path, text)
    assert reply["jsonrpc"] == "2.0"
    assert "result" not in reply
    assert reply["error"]["code"] == code
    assert complaint in reply["error"]["message"]


@pytest.mark.parametrize("text", [request("dance"), bind_request(port=70000), b"{}\n", b"{nonsense}\n"])
def test_the_connection_stays_usable_after_a_refusal(survivor: Binder, text: bytes) -> None:
    with RawClient(survivor.socket_path) as client:
        client.ask(text)
        assert client.ask(request("hello", request_id="again"))["id"] == "again"


@pytest.mark.parametrize("request_id", [1, "x", 2.5, None, 'ü\n"', 2**62])
def test_a_refusal_has_the_id_of_its_request(survivor: Binder, request_id: object) -> None:
    assert ask(survivor.socket_path, request("dance", request_id=request_id))["id"] == request_id


def test_a_mebibyte_without_a_newline_is_refused_and_dropped(binder: Binder) -> None:
    with unharmed(binder, len(binder.descriptors())), RawClient(binder.socket_path) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the binder does not wait for the rest
            client.send(b"{" + b" " * (1 << 20))
        assert client.reply()["error"]["message"] == "Invalid request: a message has more than 524288 bytes"
        assert client.at_end()
    binder.wait_for_log("event=protocol-error")


def test_the_limit_of_a_request_can_be_set(start_binder: StartBinder) -> None:
    binder = start_binder("--max-request", "100")
    assert "more than 100 bytes" in ask(binder.socket_path, b"{" + b" " * 200)["error"]["message"]
    assert ask(binder.socket_path, request("hello"))["result"]["pid"] == binder.pid


def test_an_address_in_use_is_refused_and_names_the_holder(binder: Binder, taken: tuple[str, int]) -> None:
    comm = Path("/proc/self/comm").read_text().strip()
    with (
        unharmed(binder, len(binder.descriptors())),
        Client(binder.socket_path) as client,
        pytest.raises(BindError) as refusal,
    ):
        client.bind([("127.0.0.1", 0), taken])
    address = "{}:{}".format(*taken)
    assert str(refusal.value) == (
        f"Could not bind: {address}: address already in use, by {comm} (pid {os.getpid()}); "
        f"take it over with 'multibinder adopt {address}', stop it, or choose another port"
    )
    assert (refusal.value.errno, refusal.value.address, refusal.value.code) == (98, address, 10000)
    binder.wait_for_log("event=refused method=bind")


def test_an_address_in_use_by_a_wildcard_listener_names_its_holder(survivor: Binder) -> None:
    with socket.socket() as everywhere:
        everywhere.bind(("0.0.0.0", 0))
        everywhere.listen()
        reply = ask(survivor.socket_path, bind_request(port=everywhere.getsockname()[1]))
    assert f"(pid {os.getpid()})" in reply["error"]["message"]
    assert reply["error"]["data"]["errname"] == "EADDRINUSE"


def test_the_holder_of_an_address_is_not_guessed_when_it_is_not_visible(
    start_binder: StartBinder, taken: tuple[str, int]
) -> None:
    require("root", os.geteuid() == 0, "starting a process of another user needs root")
    binder = start_binder(prefix=without_privileges(), program=for_everybody().program)
    reply = ask(binder.socket_path, bind_request(port=taken[1]))
    assert "address already in use, by a process that this user may not see;" in reply["error"]["message"]


def test_a_privileged_port_without_the_privilege_is_refused_with_the_remedy(start_binder: StartBinder) -> None:
    first = unprivileged_port()
    require("privileged-ports", first > 80, f"net.ipv4.ip_unprivileged_port_start is {first}: anybody may bind port 80")
    binder = start_binder(prefix=without_privileges(), program=for_everybody().program)
    reply = ask(binder.socket_path, bind_request(port=80))
    assert reply["error"]["message"] == (
        f"Could not bind: 127.0.0.1:80: permission denied: a port below {first} needs CAP_NET_BIND_SERVICE in the "
        "binder (AmbientCapabilities= in its unit), or a lower net.ipv4.ip_unprivileged_port_start"
    )
    assert reply["error"]["data"] == {"errno": 13, "errname": "EACCES", "address": "127.0.0.1:80"}


def test_an_address_of_another_host_is_refused_with_the_remedy(survivor: Binder) -> None:
    message = ask(survivor.socket_path, bind_request(address="192.0.2.1", port=8000))["error"]["message"]
    assert "no interface of this host has 192.0.2.1" in message
    assert "net.ipv4.ip_nonlocal_bind=1" in message


def test_one_bad_address_among_good_ones_binds_nothing(survivor: Binder, host: str) -> None:
    good = {"address": host, "port": 8000}
    for bad in ({"address": "localhost", "port": 1}, {"address": "192.0.2.1", "port": 1}):
        assert "error" in ask(survivor.socket_path, request("bind", good, bad, good))
        assert not can_connect((host, 8000))


def test_conflicting_options_are_refused_with_both_values(binder: Binder) -> None:
    require_ipv6()
    with Client(binder.socket_path) as client:
        with client.bind([ListenerSpec(TcpAddress.of("::1", 0), Options(v6only=True))])[0] as listener:
            address = TcpAddress.of("::1", listener.getsockname()[1])
        complaint = "exists with v6only True, and False was asked for; it cannot change while the socket lives"
        with pytest.raises(BindError, match=complaint):
            client.bind([ListenerSpec(address, Options(v6only=False))])


def test_a_listener_past_the_limit_is_refused_with_the_option_that_sets_it(start_binder: StartBinder) -> None:
    binder = start_binder("--max-listeners", "2")
    with Client(binder.socket_path) as client:
        with pytest.raises(RequestError, match="holds its limit of 2 listeners") as refusal:
            client.bind([("127.0.0.1", 0)] * 3)
        assert refusal.value.code == 10001
        assert "--max-listeners" in str(refusal.value)
        assert client.list() == []
        for listener in client.bind([("127.0.0.1", 0)] * 2):
            listener.close()


def test_check_is_refused_as_bind_would_be_and_creates_nothing(
    survivor: Binder, taken: tuple[str, int], host: str
) -> None:
    with Client(survivor.socket_path) as client:
        client.check([(host, 8000)])
        with pytest.raises(BindError, match=rf"by .* \(pid {os.getpid()}\)"):
            client.check([(host, 8000), taken])
        assert client.list() == []
    assert not can_connect((host, 8000))


def test_a_bind_of_a_listener_that_cannot_be_repaired_is_answered_with_a_refusal(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client, client.bind([(host, 8000)])[0] as listener:
        socket.socket.shutdown(listener, socket.SHUT_RDWR)  # as a program without the library does
        with socket.socket() as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            stranger.bind((host, 8000))
            stranger.listen()
            with pytest.raises(BindError, match=rf"address already in use, by .*\(pid {os.getpid()}\)"):
                client.bind([(host, 8000)])


def test_a_refusal_is_one_line_of_log(binder: Binder, taken: tuple[str, int]) -> None:
    ask(binder.socket_path, bind_request(port=taken[1]))
    line = binder.wait_for_log("event=refused")
    assert f"pid={os.getpid()} uid={os.geteuid()}" in line
    assert f"address already in use, by {Path('/proc/self/comm').read_text().strip()}" in line


def test_a_log_line_cannot_be_forged(start_binder: StartBinder) -> None:
    binder = start_binder("-v", "--log-format", "text")
    ask(binder.socket_path, b'{"method":"x\\nlevel=error event=forged","id":1}\n')
    ask(binder.socket_path, b"x\nlevel=error event=forged\n")
    ask(binder.socket_path, request("hello"))
    binder.wait_for_log("event=protocol-error")
    assert not any(line.startswith("level=error") for line in binder.log_path.read_text().splitlines())


def test_a_reply_is_one_line_for_every_request(survivor: Binder) -> None:
    with RawClient(survivor.socket_path) as client:
        client.send(b'{"method":"a\\nb","id":"c\\nd"}\n')
        message, _ = client.receive()
    assert message.count(b"\n") == 1
    assert json.loads(message)["id"] == "c\nd"
