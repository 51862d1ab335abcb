"""Fuzz target: turn bytes into encoded answers as the binder does, without I/O.

``python -m tests.fuzz.decoder --runs 1000000`` takes them from the generator in ``inputs``; where atheris is installed,
the last twentieth from libFuzzer, which is led by coverage (and five times as slow). ``python -m tests.fuzz.decoder
FILE…`` runs these inputs again.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from multibinder import RemoteProtocolError
from multibinder.wire import messages
from multibinder.wire.decoder import Decoder
from multibinder.wire.listener_params import check_spec, decode_listener_params
from multibinder.wire.messages import InvalidParamsError
from tests.fuzz import campaign
from tests.fuzz.inputs import Generator, corpus

#: Small, so that inputs reach it; large enough for numbers and nesting that are too much for the parsers.
LIMIT = 16384
#: How much longer than its request an answer may be: it repeats the id and lists the addresses, and beside that it says
#: one sentence, with a few excerpts of at most 120 characters, each of which takes 11 bytes at most (\\U0010ffff).
MARGIN = 4096


def read(chunks: Iterable[bytes]) -> tuple[list[bytes], str]:
    """Return the messages in a stream, and how it ends: refused, in the middle of a message, or between two."""
    decoder = Decoder(LIMIT)
    found = []
    try:
        for chunk in chunks:
            decoder.feed(chunk)
            while (message := decoder.next_message()) is not None:
                found.append(message)
    except RemoteProtocolError:
        return found, "refused"
    return found, "unfinished" if decoder.unfinished else "between two"


def answer(message: bytes) -> bytes:
    """Answer a message as the binder does, without the work on sockets."""
    try:
        request = messages.decode_request(message)
    except msgspec.ValidationError as error:
        return messages.encode_error(None, messages.INVALID_REQUEST, f"not a JSON-RPC request: {error}")
    except msgspec.DecodeError as error:
        return messages.encode_error(None, messages.PARSE_ERROR, f"not JSON: {error}")
    try:
        params = decode_listener_params(request.params)
        specs = [check_spec(index, element) for index, element in enumerate(params)]
    except InvalidParamsError as error:
        return messages.encode_error(request.id, messages.INVALID_PARAMS, f"Invalid params: {error}")
    return messages.encode_result(request.id, [str(spec) for spec in specs])


def read_answer(line: bytes) -> dict[str, Any]:
    """Parse an answer as the strictest client does: one line, UTF-8, no key twice, only numbers of JSON."""
    assert line.endswith(b"\n"), line
    assert line.count(b"\n") == 1, line
    found = json.loads(line.decode(), parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates)
    assert isinstance(found, dict), line
    assert found["jsonrpc"] == "2.0", line
    assert ("result" in found) != ("error" in found), line
    if "error" in found:
        assert isinstance(found["error"]["code"], int), line
        assert isinstance(found["error"]["message"], str), line
        found["error"]["message"].encode()  # half a surrogate cannot be encoded
    return found


def check(stream: bytes) -> None:
    """Fail if this stream breaks one of the promises."""
    whole = read([stream])
    if len(stream) <= 1024:
        assert read(stream[at : at + 1] for at in range(len(stream))) == whole, (
            "fed byte by byte, the stream gives another result"
        )
    cuts = Generator(zlib.crc32(stream), [])
    assert read(cuts.pieces(stream)) == whole, "fed in pieces, the stream gives another result"
    for message in whole[0]:
        line = answer(message)
        assert len(line) <= len(message) + MARGIN, f"an answer of {len(line)} bytes to a request of {len(message)}"
        check_id(message, read_answer(line))


def check_id(message: bytes, reply: dict[str, Any]) -> None:
    """Assert that the answer has the id that another JSON parser finds in the request; null if it is no request."""
    if reply["id"] is None and "error" in reply and reply["error"]["code"] != messages.INVALID_PARAMS:
        assert reply["error"]["code"] in (messages.INVALID_REQUEST, messages.PARSE_ERROR), message
        return
    try:
        expected = json.loads(message.decode(errors="replace"), parse_int=_int_or_text)["id"]
    except RecursionError:
        return  # msgspec skips deeper nesting than this parser can read
    assert (type(reply["id"]), reply["id"]) == (type(expected), expected), (message, reply)


def _int_or_text(digits: str) -> int | str:
    try:
        return int(digits)
    except ValueError:  # more digits than sys.get_int_max_str_digits()
        return digits


def _refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    assert len(found) == len(pairs), pairs
    return found


def main() -> None:
    options = campaign.options("decoder", engine=True)
    if options.files:
        campaign.again(options.files, check)
        return
    installed = importlib.util.find_spec("atheris") is not None
    if options.engine == "atheris" and not installed:
        sys.exit("atheris is not installed: pip install atheris, or --engine own")
    by_coverage = 0
    if options.engine != "own" and installed:
        by_coverage = options.runs if options.engine == "atheris" else options.runs // 20
    if own := options.runs - by_coverage:
        seeds = corpus("decoder")
        inputs = itertools.chain(seeds.values(), Generator(options.seed, list(seeds.values())).streams())
        campaign.run(options, "decoder", itertools.islice(inputs, own), check)
    if by_coverage:
        campaign.say(f"decoder: {by_coverage} inputs led by coverage")
        sys.exit(run_by_coverage(by_coverage, options.seed, options.failures))


def run_by_coverage(runs: int, seed: int, failures: Path) -> int:
    """Run libFuzzer in a new process: it may end the process, and instruments only modules that are loaded after it."""
    with tempfile.TemporaryDirectory(prefix="mb-fuzz-") as directory:
        program = [sys.executable, "-m", "tests.fuzz.decoder_by_coverage"]
        status = subprocess.run([*program, str(runs), str(seed), str(failures), directory], check=False).returncode
    if status:
        campaign.say(f"decoder: run it again with\n  {sys.executable} -m tests.fuzz.decoder {failures}/decoder-…")
    return status


if __name__ == "__main__":
    main()
