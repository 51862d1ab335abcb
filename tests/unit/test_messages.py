from __future__ import annotations

import json

import msgspec
import pytest

from multibinder import ListenerSpec, Options, TcpAddress
from multibinder.wire import messages
from multibinder.wire.listener_params import ListenerParams, check_spec, decode_listener_params
from multibinder.wire.messages import InvalidParamsError

RUBY_REQUEST = (
    b'{"jsonrpc":"2.0","method":"bind","id":"5f0c7a0e-6a0e-4bb0-9d4e-0e0f5b1f7c3a",'
    b'"params":[{"address":"127.0.0.1","port":8000,"backlog":1000}]}'
)


def params(text: bytes) -> list[ListenerParams]:
    return decode_listener_params(msgspec.Raw(text))


def test_the_ruby_programs_request_is_understood() -> None:
    request = messages.decode_request(RUBY_REQUEST)
    assert request.method == "bind"
    assert request.id == "5f0c7a0e-6a0e-4bb0-9d4e-0e0f5b1f7c3a"
    [element] = decode_listener_params(request.params)
    assert element.spec() == ListenerSpec(TcpAddress.parse("127.0.0.1:8000"), Options(backlog=1000))


def test_our_request_is_one_that_the_ruby_program_understands() -> None:
    spec = ListenerSpec(TcpAddress.parse("127.0.0.1:8000"), Options(backlog=1000))
    text = messages.encode_request("bind", "1", [ListenerParams.of(spec, "")])
    assert text.endswith(b"}\n")
    assert json.loads(text) == {
        "jsonrpc": "2.0",
        "method": "bind",
        "id": "1",
        "params": [{"address": "127.0.0.1", "port": 8000, "backlog": 1000}],
    }


@pytest.mark.parametrize(
    "spec",
    [
        ListenerSpec(TcpAddress.parse("192.0.2.1:80")),
        ListenerSpec(TcpAddress.parse("[2001:db8::1]:443"), Options(backlog=5, v6only=False, name="web/https")),
        ListenerSpec(TcpAddress.parse("0.0.0.0:0"), Options(name="any")),
    ],
)
def test_a_spec_survives_the_wire(spec: ListenerSpec) -> None:
    text = messages.encode_request("bind", "1", [ListenerParams.of(spec, "me")])
    [element] = decode_listener_params(messages.decode_request(text).params)
    assert element.owner == "me"
    assert element.spec() == spec


@pytest.mark.parametrize("request_id", [1, "one", 1.5, None])
def test_a_reply_has_the_id_of_its_request(request_id: messages.Id) -> None:
    request = messages.decode_request(json.dumps({"method": "list", "id": request_id}).encode())
    assert json.loads(messages.encode_result(request.id, True)) == {"jsonrpc": "2.0", "id": request_id, "result": True}
    refusal = json.loads(messages.encode_error(request.id, -32601, "no", {"errno": 1}))
    assert refusal == {
        "jsonrpc": "2.0",
        "id": request_id,
        "error": {"code": -32601, "message": "no", "data": {"errno": 1}},
    }


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b'{"method":"bind"}',
        b'{"id":1}',
        b'{"method":1,"id":1}',
        b'{"method":"bind","id":{}}',
        b'{"method":"bind","id":true}',
        b'{"method":"bind","id":1,"jsonrpc":2}',
    ],
)
def test_json_that_is_not_a_request_is_a_validation_error(text: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        messages.decode_request(text)


@pytest.mark.parametrize(
    "text",
    [
        b'{"method":"bind","id":1',
        b'{"method":"bind","id":NaN}',
        b'{"method":"bind","id":1}{}',
        b'{"method":"bind","id":"\xff"}',
        b'{"method":"\xff\xfe","id":1}',
        b'{"method":"\\ud800","id":1}',
        b'{"a":' * 20000 + b"1" + b"}" * 20000,
        b'{"method":"bind","id":1,"params":' + b"[" * 20000 + b"]" * 20000 + b"}",
    ],
)
def test_bytes_that_are_not_json_are_a_decode_error(text: bytes) -> None:
    # The binder catches only this exception and its subclass. Any other would end it.
    with pytest.raises(msgspec.DecodeError):
        messages.decode_request(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"[]", 'params is empty: give at least one {"address": …, "port": …}'),
        (b"null", "Expected `array`, got `null`"),
        (b"{}", "Expected `array`, got `object`"),
        (b"[1]", "Expected `object`, got `int` - at `params[0]`"),
        (b'[{"port":80}]', "missing required field `address` - at `params[0]`"),
        (b'[{"address":"127.0.0.1"}]', "missing required field `port` - at `params[0]`"),
        (b'[{"address":"::1","port":80},{"address":"::1"}]', "missing required field `port` - at `params[1]`"),
        (b'[{"address":"127.0.0.1","port":null}]', "Expected `int`, got `null` - at `params[0].port`"),
        (b'[{"address":127,"port":80}]', "Expected `str`, got `int` - at `params[0].address`"),
        (b'[{"address":"127.0.0.1","port":"80"}]', "Expected `int`, got `str` - at `params[0].port`"),
        (b'[{"address":"127.0.0.1","port":80.5}]', "Expected `int`, got `float` - at `params[0].port`"),
        (b'[{"address":"127.0.0.1","port":true}]', "Expected `int`, got `bool` - at `params[0].port`"),
        (b'[{"address":"127.0.0.1","port":80,"owner":1}]', "Expected `str`, got `int` - at `params[0].owner`"),
        (b'[{"address":"127.0.0.1","port":80,"v6only":"yes"}]', "Expected `bool | null`, got `str`"),
        (
            b'[{"address":"127.0.0.1","port":80},{"address":"127.0.0.1","port":81,"bakclog":1}]',
            "unknown field `bakclog` - at `params[1]`; a listener takes address and port, or endpoint; ",
        ),
        (b'[{"address":"\xff","port":80}]', "utf-8"),
        (b'[{"address":"127.0.0.1","port":80,"name":"\xff"}]', "utf-8"),
    ],
)
def test_wrong_params_are_refused_with_their_place(text: bytes, complaint: str) -> None:
    with pytest.raises(InvalidParamsError) as refusal:
        params(text)
    assert complaint in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b'[{"address":"127.0.0.1","port":70000}]', "params[0]: port 70000 is out of range"),
        (b'[{"address":"localhost","port":80}]', "params[0]: host 'localhost' is a name"),
        (b'[{"address":"fe80::1%eth0","port":80}]', "params[0]: host 'fe80::1%eth0' has an IPv6 scope"),
        (b'[{"address":"127.0.0.1","port":80,"backlog":0}]', "params[0]: backlog 0 is out of range"),
        (b'[{"address":"127.0.0.1","port":80,"v6only":true}]', "params[0]: 127.0.0.1:80: v6only has a meaning for"),
        (b'[{"address":"127.0.0.1","port":80,"owner":"a b"}]', "params[0]: owner 'a b' is not usable"),
        (b'[{"address":"127.0.0.1","port":80,"name":""}]', "params[0]: name '' is not usable"),
    ],
)
def test_params_of_the_right_type_and_a_wrong_value_are_refused_with_their_place(text: bytes, complaint: str) -> None:
    [element] = params(text)
    with pytest.raises(InvalidParamsError) as refusal:
        check_spec(0, element)
    assert str(refusal.value).startswith(complaint)


def test_a_continuation_is_a_notification_with_the_position_where_it_continues() -> None:
    assert messages.encode_continuation(252) == b'{"jsonrpc":"2.0","method":"descriptors","params":{"from":252}}\n'
