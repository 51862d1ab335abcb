"""The output of a copy: lines with a prefix, whatever it writes and whoever reads."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from multibinder.launch.run.output import LAST_LINES, Output
from multibinder.launch.run.sink import Sink
from multibinder.launch.run.tasks import sleep
from tests.run.copy_of_a_program import copies, run
from tests.support.processes import descriptors_unchanged


class Pipe:
    def __init__(self, pattern: str | None = None) -> None:
        reading, self.writing = os.pipe()
        self.lines: list[bytes] = []
        self.output = Output(reading, "web[g1 7]: ", self.lines.append, pattern)

    def write(self, text: bytes) -> None:
        os.write(self.writing, text)
        self.output.read_waiting()

    def end(self) -> None:
        os.close(self.writing)
        self.output.read_waiting()
        self.output.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.output.close()


def test_each_line_gets_the_prefix_and_an_unfinished_one_waits(pipe: Pipe) -> None:
    pipe.write(b"one\ntwo\nthr")
    assert pipe.lines == [b"web[g1 7]: one\n", b"web[g1 7]: two\n"]
    pipe.write(b"ee\n\n")
    assert pipe.lines[2:] == [b"web[g1 7]: three\n", b"web[g1 7]: \n"]
    pipe.write(b"end without a newline")
    pipe.end()
    assert pipe.lines[4:] == [b"web[g1 7]: end without a newline\n"]
    assert pipe.output.ended.is_set
    assert pipe.output.last[-1] == "end without a newline"


def test_a_priority_for_the_journal_stays_at_the_start(pipe: Pipe) -> None:
    pipe.write(b"<3>broken\n<9>none\n< 3>none\n")
    assert pipe.lines == [b"<3>web[g1 7]: broken\n", b"web[g1 7]: <9>none\n", b"web[g1 7]: < 3>none\n"]
    pipe.end()


def test_a_line_without_end_is_several(pipe: Pipe) -> None:
    for _ in range(10):
        pipe.write(b"x" * 5000)
    assert len(pipe.lines) == 6
    assert max(map(len, pipe.lines)) <= 8192 + 20
    pipe.write(b"\n")
    assert sum(line.count(b"x") for line in pipe.lines) == 50000
    pipe.end()


def test_binary_output_passes_unchanged_and_is_safe_in_reports(pipe: Pipe) -> None:
    everything = bytes(byte for byte in range(256) if byte != 10)
    pipe.write(everything + b"\n")
    assert pipe.lines == [b"web[g1 7]: " + everything + b"\n"]
    assert "\x1b" not in pipe.output.last[0]
    pipe.end()


def test_only_the_last_lines_are_kept(pipe: Pipe) -> None:
    pipe.write(b"".join(b"%d\n" % number for number in range(100)))
    assert pipe.output.last == [str(number) for number in range(100 - LAST_LINES, 100)]
    pipe.end()


def test_a_pattern_is_found_in_a_line_that_came_before_anybody_waited() -> None:
    pipe = Pipe(r"^Listening on \d+$")
    pipe.write(b"Listening on nothing\nListening on 80\nListening on 81\n")
    assert pipe.output.matched.is_set
    assert pipe.output.matched_line == "Listening on 80"
    pipe.end()


def test_a_copy_that_closes_its_output_and_runs_on_ends_the_reading() -> None:
    with descriptors_unchanged(), copies() as start:
        copy = start("import os, time; os.write(1, b'last'); os.close(1); os.close(2); time.sleep(60)")
        run(copy.output.read())
        assert copy.output.ended.is_set
        assert copy.lines == [b"web[g1 %d]: last\n" % copy.pid]
        assert copy.process.poll() is None


def test_a_copy_that_writes_without_end_lets_others_have_their_turn() -> None:
    with copies() as start:
        copy = start("while True: print('x' * 1000)")

        async def main() -> None:
            for _ in range(20):
                await sleep(0.005)

        run(main(), copy.output.read())
        assert copy.lines


def test_a_reader_that_does_not_read_costs_lines_and_nothing_waits_for_it() -> None:
    reading, writing = os.pipe()
    sink = Sink(writing, "web")
    for number in range(20000):
        sink.write(b"line %d of some length\n" % number)
    os.set_blocking(reading, False)
    text = b""

    async def read() -> None:
        nonlocal text
        while b"are lost" not in text:
            try:
                text += os.read(reading, 65536)
            except BlockingIOError:
                await sleep(0.01)

    run(read(), sink.write_waiting())
    lines = text.splitlines()
    kept = [line for line in lines if line.startswith(b"line ")]
    lost = next(line for line in lines if b"are lost" in line)
    assert lost == b"web: %d lines of output are lost: their reader was slow" % (20000 - len(kept))
    assert kept == [b"line %d of some length" % number for number in range(len(kept))]
    sink.close()
    os.close(reading)
    os.close(writing)


def test_a_reader_that_is_gone_costs_lines_and_no_more() -> None:
    reading, writing = os.pipe()
    sink = Sink(writing, "web")
    os.close(reading)
    for _ in range(100):
        sink.write(b"nobody reads this\n")
    sink.close()
    os.close(writing)
