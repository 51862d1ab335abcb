"""Each kind of hostile input gets exactly the expected answer, because clients and their authors read it.

``answer`` handles a message as the binder does, without sockets. ``tests/fuzz`` tries inputs that are not listed here.
"""

from __future__ import annotations

import json

import pytest

from multibinder import OPTION_NAMES, RemoteProtocolError
from multibinder.wire.decoder import Decoder
from tests.fuzz.decoder import answer, read, read_answer

DIGITS = b"7" * 5000
NESTED = b"[" * 20_000 + b"]" * 20_000

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
INVALID_PARAMS = -32602
A_LISTENER = (
    f"`; a listener takes address and port, or endpoint; owner, shard, netns, shards, {', '.join(OPTION_NAMES)}"
)
NO_PORT = " is out of range: a TCP port is a number from 0 to 65535"
NO_BACKLOG = " is out of range: 1 to 2147483647 connections"
NO_LABEL = " is not usable: 1 to 128 of A-Z a-z 0-9 _ . @ / + -"
A_NAME = (
    " is a name: give a numeric address. A name can mean several addresses, and another one after the next DNS answer; "
    "a listener must not depend on that"
)


def hello(**fields: bytes) -> bytes:
    """Return a valid request with these raw fields."""
    all_fields = {
        "jsonrpc": b'"2.0"',
        "method": b'"hello"',
        "id": b"1",
        "params": b'[{"address":"::1","port":1}]',
        **fields,
    }
    return b"{" + b",".join(b'"%b":%b' % (name.encode(), value) for name, value in all_fields.items()) + b"}"


def bind(**fields: bytes) -> bytes:
    element = {"address": b'"::1"', "port": b"80", **fields}
    return hello(
        params=b"[{" + b",".join(b'"%b":%b' % (name.encode(), value) for name, value in element.items()) + b"}]"
    )


@pytest.mark.parametrize(
    ("request_id", "echoed"),
    [
        pytest.param(b"0", b"0", id="0"),
        pytest.param(b"-0", b"0", id="minus zero"),
        pytest.param(b"-0.0", b"-0.0", id="minus zero, with a fraction"),
        pytest.param(b"null", b"null", id="null"),
        pytest.param(b"18446744073709551616", b"18446744073709551616", id="past 64 bits"),
        pytest.param(b"-9223372036854775809", b"-9223372036854775809", id="past 64 bits, negative"),
        pytest.param(DIGITS[:4300], DIGITS[:4300], id="4300 digits"),
        pytest.param(b"1e308", b"1e308", id="1e308"),
        pytest.param(b"1e-999", b"0.0", id="1e-999"),
        pytest.param(b'""', b'""', id="empty"),
        pytest.param(b'"\\u0000\\u001f\\n"', b'"\\u0000\\u001f\\n"', id="control characters"),
        pytest.param(b'"\\ud83d\\ude00"', b'"\xf0\x9f\x98\x80"', id="a pair of surrogates"),
        pytest.param(b'"\x7f\xc2\x85"', b'"\x7f\xc2\x85"', id="control characters of other standards"),
        pytest.param(b'1,"id":"2"', b'"2"', id="twice: the last counts"),
        pytest.param(b'{},"id":2', None, id="twice: each must be one"),
    ],
)
def test_a_valid_id_comes_back(request_id: bytes, echoed: bytes | None) -> None:
    line = answer(hello(id=request_id))
    if echoed is None:
        assert read_answer(line)["id"] is None
    else:
        assert line == b'{"jsonrpc":"2.0","id":%b,"result":["[::1]:1"]}\n' % echoed


@pytest.mark.parametrize(
    ("message", "code", "complaint"),
    [
        pytest.param(
            hello(id=DIGITS), INVALID_REQUEST, "Integer value out of range - at `$.id`", id="id of 5000 digits"
        ),
        pytest.param(hello(id=b"-" + DIGITS), INVALID_REQUEST, "Integer value out of range - at `$.id`", id="negative"),
        pytest.param(hello(id=b"1e999"), INVALID_REQUEST, "Number out of range - at `$.id`", id="id 1e999"),
        pytest.param(hello(id=b"-1e999"), INVALID_REQUEST, "Number out of range - at `$.id`", id="id -1e999"),
        pytest.param(hello(id=b"true"), INVALID_REQUEST, "got `bool` - at `$.id`", id="id true"),
        pytest.param(hello(id=b"{}"), INVALID_REQUEST, "got `object` - at `$.id`", id="id {}"),
        pytest.param(b'{"method":"hello"}', INVALID_REQUEST, "missing required field `id`", id="no id"),
        pytest.param(b'{"id":1}', INVALID_REQUEST, "missing required field `method`", id="no method"),
        pytest.param(hello(method=b"7"), INVALID_REQUEST, "got `int` - at `$.method`", id="method 7"),
        pytest.param(hello(id=b"NaN"), PARSE_ERROR, "JSON is malformed: invalid character", id="id NaN"),
        pytest.param(hello(id=b"-Infinity"), PARSE_ERROR, "JSON is malformed: invalid character", id="id -Infinity"),
        pytest.param(hello(id=b"01"), PARSE_ERROR, "JSON is malformed", id="id 01"),
        pytest.param(
            hello(id=b'"\\ud800"'), PARSE_ERROR, "JSON is malformed: unexpected end of escaped", id="id \\ud800"
        ),
        pytest.param(
            hello(id=b'"\\udc00\\ud800"'), PARSE_ERROR, "invalid utf-16 surrogate pair", id="id \\udc00\\ud800"
        ),
        pytest.param(hello(id=b'"\xff"'), PARSE_ERROR, "not UTF-8: invalid start byte", id="id \\xff"),
        pytest.param(hello(id=b'"\xc0\x80"'), PARSE_ERROR, "not UTF-8: invalid start byte", id="id overlong"),
        pytest.param(
            hello(id=b'"\xed\xa0\x80"'), PARSE_ERROR, "not UTF-8: invalid continuation byte", id="id as CESU-8"
        ),
        pytest.param(
            hello(id=b'"\xf0\x9f\x98"'), PARSE_ERROR, "not UTF-8: unexpected end of data", id="id cut in a character"
        ),
        pytest.param(hello(method=b'"\\ud800"'), PARSE_ERROR, "unexpected end of escaped", id="method \\ud800"),
        pytest.param(hello(method=b'"\xff"'), PARSE_ERROR, "not UTF-8: invalid start byte", id="method \\xff"),
        pytest.param(hello(jsonrpc=b'"\\ud800"'), PARSE_ERROR, "unexpected end of escaped", id="jsonrpc \\ud800"),
        pytest.param(hello(jsonrpc=b'"\xff"'), PARSE_ERROR, "not UTF-8: invalid start byte", id="jsonrpc \\xff"),
        pytest.param(hello(jsonrpc=b'1,"\\ud800":1'), INVALID_REQUEST, "got `int` - at `$.jsonrpc`", id="jsonrpc 1"),
        pytest.param(hello(id=b'1,"\\ud800":1'), PARSE_ERROR, "unexpected end of escaped", id="key \\ud800"),
        pytest.param(
            hello(method=b'"a\x00b"'), PARSE_ERROR, "JSON is malformed: invalid character", id="NUL in a string"
        ),
        pytest.param(hello() + b"\x00", PARSE_ERROR, "JSON is malformed: trailing characters", id="NUL after"),
        pytest.param(hello(params=NESTED), PARSE_ERROR, "nested too deeply", id="deep arrays"),
        pytest.param(b'{"a":' * 9999 + b"1" + b"}" * 9999, PARSE_ERROR, "nested too deeply", id="deep objects"),
        pytest.param(hello(params=b"[" * 20_000), PARSE_ERROR, "nested too deeply", id="deep and open"),
        pytest.param(hello(id=b"/**/1"), PARSE_ERROR, "JSON is malformed", id="comment"),
        pytest.param(b"{'method':'hello','id':1}", PARSE_ERROR, "JSON is malformed", id="single quotes"),
        pytest.param(b'{"method":"hello","id":1,}', PARSE_ERROR, "JSON is malformed", id="trailing comma"),
        pytest.param(b'{"method":"hello","id":1', PARSE_ERROR, "Input data was truncated", id="no end"),
    ],
)
def test_an_invalid_request_is_refused_without_an_id(message: bytes, code: int, complaint: str) -> None:
    reply = read_answer(answer(message))
    assert (reply["id"], reply["error"]["code"]) == (None, code)
    assert complaint in reply["error"]["message"]


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        pytest.param(bind(port=DIGITS), "Integer value out of range - at `params[0].port`", id="port of 5000 digits"),
        pytest.param(bind(port=b"1e999"), "Number out of range - at `params[0].port`", id="port 1e999"),
        pytest.param(bind(port=b"8e1"), "Expected `int`, got `float` - at `params[0].port`", id="port 8e1"),
        pytest.param(bind(port=b"true"), "Expected `int`, got `bool` - at `params[0].port`", id="port true"),
        pytest.param(
            bind(port=b"1" + b"0" * 40),
            "params[0]: port 1" + "0" * 40 + NO_PORT,
            id="port of 41 digits",
        ),
        pytest.param(
            bind(port=DIGITS[:4300]),
            "params[0]: port " + "7" * 80 + "…" + "7" * 40 + NO_PORT,
            id="port of 4300 digits",
        ),
        pytest.param(
            bind(backlog=DIGITS[:4300]),
            "params[0]: backlog " + "7" * 80 + "…" + "7" * 40 + NO_BACKLOG,
            id="backlog of 4300 digits",
        ),
        pytest.param(bind(port=b'80,"port":-1'), "params[0]: port -1" + NO_PORT, id="port twice: the last counts"),
        pytest.param(
            bind(address=b'"127.0.0.1\\u0000.evil"'), "params[0]: host '127.0.0.1\\x00.evil'" + A_NAME, id="NUL"
        ),
        pytest.param(bind(address=b'"\\ud83d\\ude00"'), "params[0]: host '\N{GRINNING FACE}'" + A_NAME, id="emoji"),
        pytest.param(
            bind(address=b'"' + b"\x7f" * 400_000 + b'"'),
            "params[0]: host '" + ("\\x7f" * 20)[:79] + "…" + ("\\x7f" * 10)[1:] + "'" + A_NAME,
            id="long address",
        ),
        pytest.param(
            bind(address=b'"' + b":" * 400_000 + b'"'),
            "params[0]: host '" + ":" * 79 + "…" + ":" * 39 + "' is not a valid IP address",
            id="long address of colons",
        ),
        pytest.param(
            bind(owner=b'"' + b"x" * 400_000 + b'"'),
            "params[0]: owner '" + "x" * 79 + "…" + "x" * 39 + "'" + NO_LABEL,
            id="long owner",
        ),
        pytest.param(
            bind(name=b'"\\u009b31m"'),
            "params[0]: name '\\x9b31m'" + NO_LABEL,
            id="terminal escapes",
        ),
        pytest.param(
            bind(**{"x" * 400_000: b"1"}),
            "Object contains unknown field `" + "x" * 49 + "…" + "x" * 27 + "` - at `params[0]" + A_LISTENER,
            id="long option",
        ),
        pytest.param(hello(params=b"7"), "Expected `array`, got `int`", id="params 7"),
        pytest.param(
            hello(params=b"[]"), 'params is empty: give at least one {"address": …, "port": …}', id="no params"
        ),
    ],
)
def test_invalid_params_are_refused_in_a_sentence_of_bounded_length(message: bytes, complaint: str) -> None:
    reply = read_answer(answer(message))
    assert (reply["id"], reply["error"]["code"]) == (1, INVALID_PARAMS)
    assert reply["error"]["message"] == f"Invalid params: {complaint}"


@pytest.mark.parametrize("field", ["address", "owner", "name"])
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b'"\\ud800"', "not JSON: "),
        (b'"\\udc00\\ud800"', "JSON is malformed: invalid utf-16 surrogate pair"),
        (b'"\xff"', "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b'"\xed\xa0\x80"', "'utf-8' codec can't decode byte 0xed in position 0: invalid continuation byte"),
    ],
)
def test_a_string_that_is_not_text_is_refused_in_every_field(field: str, text: bytes, complaint: str) -> None:
    reply = read_answer(answer(bind(**{field: text})))
    # Half a surrogate makes the message invalid JSON. Bytes that are not UTF-8 matter only in fields that are read.
    assert complaint in reply["error"]["message"]
    assert (reply["id"], reply["error"]["code"]) in ((1, INVALID_PARAMS), (None, PARSE_ERROR))


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        pytest.param(b"\xef\xbb\xbf" + hello(), "not a JSON object: b'\\xef\\xbb\\xbf{", id="byte order mark"),
        pytest.param(hello().decode().encode("utf-16"), "not a JSON object: b'\\xff\\xfe{\\x00", id="UTF-16"),
        pytest.param(b"\x00" + hello(), "not a JSON object: b'\\x00{", id="NUL before"),
        pytest.param(b"[" + hello() + b"]", "JSON-RPC batches are not supported: send one object after", id="batch"),
        pytest.param(b"GET / HTTP/1.1\r\n", "not a JSON object: b'GET / HTTP/1.1\\r\\n'", id="HTTP"),
        pytest.param(b"\x16\x03\x01\x00\xc8", "not a JSON object: b'\\x16\\x03\\x01\\x00\\xc8'", id="TLS"),
        pytest.param(b"}", "not a JSON object: b'}'", id="a brace that closes nothing"),
        pytest.param(b'{"a":"' + b"x" * (1 << 20), "a message has more than 1000 bytes", id="no end"),
        pytest.param(b"{" * (1 << 20), "a message has more than 1000 bytes", id="braces that never close"),
    ],
)
def test_bytes_that_are_not_a_message_end_the_connection_with_the_reason(stream: bytes, complaint: str) -> None:
    decoder = Decoder(1000)
    decoder.feed(stream)
    with pytest.raises(RemoteProtocolError) as refusal:
        decoder.next_message()
    assert complaint in str(refusal.value)


def test_an_extra_brace_ends_the_connection_but_not_the_request_before_it() -> None:
    assert read([hello() + b"}\n"]) == ([hello()], "refused")


def test_an_answer_is_one_line_of_strict_json_for_every_id() -> None:
    for code_point in [*range(0x20), 0x7F, 0x85, 0x2028, 0x2029, 0xFEFF, 0x10FFFF]:
        text = json.dumps(chr(code_point)).encode()
        assert read_answer(answer(hello(id=text)))["id"] == chr(code_point)
