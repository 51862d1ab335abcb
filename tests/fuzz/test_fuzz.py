"""Run both fuzz targets for a short time: the corpus, and a few thousand inputs that are the same every time.

``make fuzz`` is the long run.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz import decoder, server
from tests.fuzz.inputs import TOKENS, Generator, Script, corpus
from tests.support import PATIENCE_S

#: The inputs are the same in every run, so that this test does not fail by chance. ``make fuzz`` looks for new ones.
_SEED = 1
#: Pieces with a meaning for the decoder, and any other bytes. Hypothesis shrinks a failure to the few that matter.
_STREAMS = st.lists(st.sampled_from(TOKENS) | st.binary(max_size=4), max_size=30).map(b"".join)
_REQUESTS = st.integers(0, 10**6).map(lambda seed: Generator(seed, [b"{}"]).stream())


@pytest.mark.parametrize("name", corpus("decoder"))
def test_the_decoder_keeps_its_promises_for_every_input_of_the_corpus(name: str) -> None:
    decoder.check(corpus("decoder")[name])


@settings(max_examples=1500, derandomize=True, deadline=None, database=None)
@given(_STREAMS | _STREAMS.map(lambda stream: b"{" + stream) | _REQUESTS)
@example(b"{}{}")
def test_the_decoder_keeps_its_promises_for_the_inputs_of_hypothesis(stream: bytes) -> None:
    decoder.check(stream)


def test_the_decoder_keeps_its_promises_for_three_thousand_spoiled_requests() -> None:
    streams = Generator(_SEED, list(corpus("decoder").values())).streams()
    for number, stream in enumerate(itertools.islice(streams, 3000)):
        try:
            decoder.check(stream)
        except Exception as error:
            raise AssertionError(f"input {number}: {stream!r}") from error


def test_the_server_keeps_its_promises_for_the_corpus_and_three_hundred_scripts() -> None:
    seeds = server.scripts()
    generated = itertools.islice(Generator(_SEED, list(seeds.values())).scripts(), 300)
    with server.Target() as target:
        for number, script in enumerate(itertools.chain(seeds.values(), generated)):
            try:
                target.check(script)
            except Exception as error:
                raise AssertionError(f"input {number}: {script[:4000]!r}") from error
        target.settle()


@given(st.binary(max_size=50))
@settings(max_examples=300, derandomize=True, deadline=None, database=None)
def test_a_script_says_any_bytes_in_one_line(content: bytes) -> None:
    assert b"\n" not in Script.escape(content)
    assert Script.unescape(Script.escape(content)) == content


def test_an_input_that_fails_is_left_in_a_file_with_how_to_run_it_again(tmp_path: Path) -> None:
    program = (
        "import sys; from tests.fuzz import campaign\n"
        "def check(content): assert content != b'bad', 'as planned'\n"
        "campaign.run(campaign.options('decoder', engine=False), 'decoder', [b'good', b'bad', b'never'], check)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, "--failures", str(tmp_path / "left")],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    [file] = (tmp_path / "left").iterdir()
    assert (run.returncode, file.read_bytes()) == (1, b"bad")
    assert "AssertionError: as planned" in run.stderr
    assert f"-m tests.fuzz.decoder {file}" in run.stderr
