"""The decoder gets literal bytes: whole, byte by byte, and cut at every place."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest

from multibinder import RemoteProtocolError
from multibinder.wire.decoder import Decoder
from multibinder.wire.messages import decode_request

#: As multibinder 0.0.5 sends it (lib/multibinder.rb): one object, no newline.
RUBY_REQUEST = (
    b'{"jsonrpc":"2.0","method":"bind","id":"5f0c7a0e-6a0e-4bb0-9d4e-0e0f5b1f7c3a",'
    b'"params":[{"address":"127.0.0.1","port":8000,"backlog":1000}]}'
)
HELLO = b'{"jsonrpc":"2.0","method":"hello","id":1}'


def messages(decoder: Decoder, chunks: Iterable[bytes]) -> list[bytes]:
    """Feed the chunks, and return all messages. Those that are complete are taken out after each chunk."""
    found = []
    for chunk in chunks:
        decoder.feed(chunk)
        while (message := decoder.next_message()) is not None:
            found.append(message)
    return found


def bytewise(stream: bytes) -> list[bytes]:
    return [stream[at : at + 1] for at in range(len(stream))]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        pytest.param(HELLO + b"\n", [HELLO], id="one line"),
        pytest.param(HELLO, [HELLO], id="no newline"),
        pytest.param(RUBY_REQUEST, [RUBY_REQUEST], id="the Ruby program's request"),
        pytest.param(HELLO + b"\n" + RUBY_REQUEST + b"\n", [HELLO, RUBY_REQUEST], id="two lines"),
        pytest.param(HELLO + b"\n" + RUBY_REQUEST, [HELLO, RUBY_REQUEST], id="the second without a newline"),
        pytest.param(b"\n \t\r\n" + HELLO + b"\n\n\n", [HELLO], id="blank lines around"),
        pytest.param(b'{"a":"}"}\n', [b'{"a":"}"}'], id="a brace in a string"),
        pytest.param(b'{"a":"}"}', [b'{"a":"}"}'], id="a brace in a string, no newline"),
        pytest.param(b'{"a":{"b":{}}}', [b'{"a":{"b":{}}}'], id="braces inside, no newline"),
        pytest.param(b'{"a":"\\"}', [], id="a string that does not end"),
        pytest.param(b'{"a":', [], id="half a message"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_a_message_is_found_however_the_stream_is_cut(stream: bytes, expected: list[bytes]) -> None:
    assert messages(Decoder(1000), [stream]) == expected, "whole"
    for at in range(1, len(stream)):
        assert messages(Decoder(1000), [stream[:at], stream[at:]]) == expected, f"cut at {at}"


@pytest.mark.parametrize("stream", [HELLO + b"\n", HELLO, RUBY_REQUEST, HELLO + b"\n" + RUBY_REQUEST])
def test_a_message_is_found_byte_by_byte(stream: bytes) -> None:
    assert messages(Decoder(1000), bytewise(stream)) == messages(Decoder(1000), [stream])


def test_a_carriage_return_before_the_newline_changes_nothing() -> None:
    for chunks in ([HELLO + b"\r\n"], bytewise(HELLO + b"\r\n")):
        [message] = messages(Decoder(1000), chunks)
        assert decode_request(message) == decode_request(HELLO)


def test_a_newline_that_arrives_late_does_not_end_a_message_twice() -> None:
    assert messages(Decoder(1000), [HELLO, b"\n", HELLO, b"\n"]) == [HELLO, HELLO]


def test_the_beginning_of_a_message_is_unfinished() -> None:
    decoder = Decoder(1000)
    assert not decoder.unfinished
    assert messages(decoder, [HELLO[:10]]) == []
    assert decoder.unfinished
    assert messages(decoder, [HELLO[10:] + b"\n"]) == [HELLO]
    assert not decoder.unfinished


def test_blank_space_alone_is_not_unfinished() -> None:
    decoder = Decoder(1000)
    assert messages(decoder, [b" \r\n\n"]) == []
    assert not decoder.unfinished


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_message_may_be_as_long_as_the_limit_and_no_longer(end: bytes) -> None:
    message = b'{"a":"' + b"x" * 92 + b'"}'
    assert messages(Decoder(100), [message + end]) == [message]
    with pytest.raises(RemoteProtocolError, match="a message has more than 99 bytes"):
        messages(Decoder(99), [message + end])


def test_a_message_that_never_ends_is_refused_at_the_limit() -> None:
    decoder = Decoder(1000)
    assert messages(decoder, [b'{"a":"' + b"x" * 994]) == []
    with pytest.raises(RemoteProtocolError, match="more than 1000 bytes"):
        messages(decoder, [b"x"])


def test_a_large_message_needs_no_newline_either() -> None:
    message = b'{"a":"' + b"x" * 300_000 + b'"}'
    assert messages(Decoder(400_000), [message]) == [message]
    assert messages(Decoder(400_000), [message[at : at + 1000] for at in range(0, len(message), 1000)]) == [message]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        pytest.param(HELLO + HELLO, [HELLO, HELLO], id="nothing between two"),
        pytest.param(HELLO + b" " + HELLO + b" \n ", [HELLO, HELLO], id="blanks around"),
        pytest.param(HELLO + b"\x0b\x0c\n", [HELLO], id="blanks that are none to JSON"),
        pytest.param(HELLO + HELLO[:9], [HELLO], id="half of a second"),
        pytest.param(HELLO + b"\n" + HELLO[:9], [HELLO], id="half of a second line"),
        pytest.param(b'{"a":{"b":"}{"},"c":[{}]}{"d":1}', [b'{"a":{"b":"}{"},"c":[{}]}', b'{"d":1}'], id="nested"),
        pytest.param(b'{"a":"\\\\"}{"b":"\\""}', [b'{"a":"\\\\"}', b'{"b":"\\""}'], id="escapes"),
        pytest.param(b"{nonsense}" + HELLO, [b"{nonsense}", HELLO], id="what is not JSON ends at its brace"),
        pytest.param(b"{nonsense\n" + HELLO, [b"{nonsense", HELLO], id="or else at the newline"),
        pytest.param(b'{"a":"\n' + HELLO, [b'{"a":"', HELLO], id="a newline in a string"),
        pytest.param(b'{"a":"\\\n' + HELLO, [b'{"a":"\\', HELLO], id="a newline after a backslash"),
        pytest.param(b'{"a":{\n' + HELLO, [b'{"a":{', HELLO], id="a newline in an object"),
        pytest.param(b'{"a":[}' + HELLO, [b'{"a":[}', HELLO], id="a bracket that does not close"),
        pytest.param(b'{"\xff":"\x00"}' + HELLO, [b'{"\xff":"\x00"}', HELLO], id="neither UTF-8 nor text"),
    ],
)
def test_where_a_message_ends_depends_on_its_bytes_alone(stream: bytes, expected: list[bytes]) -> None:
    assert messages(Decoder(1000), [stream]) == expected, "whole"
    assert messages(Decoder(1000), bytewise(stream)) == expected, "byte by byte"
    for at in range(1, len(stream)):
        assert messages(Decoder(1000), [stream[:at], stream[at:]]) == expected, f"cut at {at}"


def test_the_limit_is_for_the_message_and_not_for_the_blanks_after_it() -> None:
    for chunks in ([HELLO + b" " * 200], bytewise(HELLO + b" " * 200)):
        assert messages(Decoder(100), chunks) == [HELLO]


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not a JSON object: b'GET / HTTP/1.1"),
        (b"x", "not a JSON object: b'x'"),
        (b'"text"\n', "not a JSON object"),
        (b"null\n", "not a JSON object"),
        (b"\x16\x03\x01\x02\x00", "not a JSON object"),
        (b"\xef\xbb\xbf{}\n", "not a JSON object"),
        (b"[" + HELLO + b"]\n", "JSON-RPC batches are not supported: send one object after the other"),
        (HELLO + b"\nx", "not a JSON object: b'x'"),
    ],
)
def test_bytes_that_cannot_start_an_object_are_refused_at_the_first_byte(stream: bytes, complaint: str) -> None:
    for chunks in ([stream], bytewise(stream)):
        with pytest.raises(RemoteProtocolError) as refusal:
            messages(Decoder(1000), chunks)
        assert complaint[:20] in str(refusal.value)
    with pytest.raises(RemoteProtocolError) as refusal:
        messages(Decoder(1000), [stream])
    assert complaint in str(refusal.value)


@pytest.mark.parametrize("opening", [b'{"a":', b'{"a":[' + b"["])
def test_deep_nesting_is_an_ordinary_message_to_the_decoder(opening: bytes) -> None:
    closing = {b"{": b"}", b"[": b"]"}
    brackets = [closing[bytes([byte])] for byte in opening if bytes([byte]) in closing]
    depth = 10_000
    text = opening * depth + b"1" + b"".join(reversed(brackets)) * depth
    assert messages(Decoder(10**6), [text + b"\n"]) == [text]


def test_invalid_utf_8_is_delivered_for_the_reader_to_refuse() -> None:
    text = b'{"method":"\xff\xfe","id":1}'
    assert messages(Decoder(1000), [text]) == [text]
    assert messages(Decoder(1000), [text + b"\n"]) == [text]


def test_a_thousand_requests_in_one_chunk_all_come_out_in_order() -> None:
    lines = [b'{"jsonrpc":"2.0","method":"hello","id":%d}' % number for number in range(1000)]
    found = messages(Decoder(1000), [b"\n".join(lines) + b"\n"])
    assert [decode_request(message).id for message in found] == list(range(1000))


def test_each_byte_is_examined_once_in_pieces_of_any_size() -> None:
    decoder = Decoder(1 << 20)
    message = b'{"a":[' + b"{}," * 3000 + b"{}]}"
    began = time.thread_time()
    found = []
    for byte in message:
        decoder.feed(bytes([byte]))
        found.append(decoder.next_message())
    # This takes 0.02 s. With a scan from the start for each byte, 4,500 braces on average, it would take 10 s.
    assert time.thread_time() - began < 1
    assert found[-1] == message
    assert not any(found[:-1])
