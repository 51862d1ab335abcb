"""A reader of the log that stops reading stops nothing, and is told what it missed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from multibinder import Client
from multibinder.kernel.line_writer import LineWriter
from tests.support import clean_environment, wait_until


@contextmanager
def serving(path: Path, stderr: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "multibinder", "serve", "-v", "--socket", str(path), *options],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
    )
    try:
        wait_until(lambda: path.exists() and answers(path), "it serves")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(path: Path) -> bool:
    try:
        with Client(path, timeout=5) as client:
            return client.hello().pid > 0
    except OSError:
        return False


def pair(kind: str) -> tuple[int, int]:
    """Return the reader's and the writer's end, which is full."""
    if kind == "pipe":
        reading, writing = os.pipe()
    elif kind == "terminal":
        reading, writing = os.openpty()
    else:
        near, far = socket.socketpair()
        reading, writing = near.detach(), far.detach()
    return reading, writing


def fill(descriptor: int) -> None:
    """Fill the buffer behind a descriptor, whose description gets O_NONBLOCK for that only."""
    os.set_blocking(descriptor, False)
    for text in (b"x" * 512 + b"\n", b"\n"):
        with suppress(BlockingIOError):
            while True:
                os.write(descriptor, text)
    os.set_blocking(descriptor, True)


def read_all(descriptor: int, until: bytes) -> bytes:
    os.set_blocking(descriptor, False)
    text = b""

    def found() -> bool:
        nonlocal text
        with suppress(BlockingIOError):
            text += os.read(descriptor, 1 << 20)
        return until in text

    wait_until(found, f"the log has {until!r}", log=lambda: text[-2000:].decode(errors="replace"))
    return text


@pytest.mark.parametrize("kind", ["pipe", "terminal", "socket"])
@pytest.mark.parametrize("guard", [[], ["--guard"]], ids=["binder", "guard"])
def test_a_reader_of_the_log_that_stops_reading_stops_nothing(run_dir: Path, kind: str, guard: list[str]) -> None:
    reading, writing = pair(kind)
    fill(writing)
    try:
        with serving(run_dir / "mb.sock", writing, *guard) as process:
            with Client(run_dir / "mb.sock", timeout=10) as client:
                for _ in range(400):  # with -v, twice the lines that may wait
                    client.bind([("127.0.0.1", 0)])[0].close()
                assert client.hello().pid
            # O_NONBLOCK belongs to the description, which we share.
            assert os.get_blocking(writing)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    finally:
        os.close(writing)
        os.close(reading)


def test_a_line_that_had_to_wait_is_written_without_another_event(run_dir: Path) -> None:
    reading, writing = os.pipe()
    try:
        with serving(run_dir / "mb.sock", writing):
            fill(writing)
            with Client(run_dir / "mb.sock", timeout=10) as client:
                client.bind([("127.0.0.1", 0)])[0].close()
            read_all(reading, b"event=bound")
    finally:
        os.close(writing)
        os.close(reading)


def test_a_reader_that_reads_again_is_told_how_many_lines_are_missing() -> None:
    program = """
import time
from multibinder.binder import events
from multibinder.cli.logs import log_to
log_to(None, "text", 10)
for number in range(500):
    events.info("told", text="y" * 1000)
print("told", flush=True)
while True:
    time.sleep(0.01)
    events.catch_up()
"""
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=writing)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"told\n"
        text = read_all(reading, b"could not be written")
        written = text.count(b"event=told")
        rest = text.partition(b"event=log-lost count=")[2]
        assert int(rest.split()[0]) == 500 - written
        assert rest.split()[1].startswith(b"since=")
    finally:
        process.kill()
        process.communicate()
        os.close(writing)
        os.close(reading)


def test_lines_that_did_not_fit_are_counted_and_no_line_is_cut_in_two() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing)
    try:
        for number in range(3000):
            writer.write(b"%d %s\n" % (number, b"y" * 90))
        assert writer.lost
        assert os.get_blocking(writing)
        os.set_blocking(reading, False)
        text = b""
        while not text or writer.is_waiting:
            text += os.read(reading, 1 << 20)
            writer.flush()
        text += os.read(reading, 1 << 20)
        lines = text.splitlines()
        assert all(re.fullmatch(rb"\d+ y{90}", line) for line in lines)
        assert len(lines) + writer.lost == 3000
    finally:
        writer.close()
        os.close(writing)
        os.close(reading)


def test_a_reader_that_went_away_is_no_error_and_a_later_one_of_a_fifo_is_found(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    first = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(path, os.O_WRONLY)
    writer = LineWriter(writing)
    try:
        writer.write(b"one\n")
        os.close(first)
        writer.write(b"two\n")
        assert writer.lost == 1
        first = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        writer.write(b"three\n")
        assert os.read(first, 100).endswith(b"three\n")
    finally:
        writer.close()
        os.close(writing)
        os.close(first)


def test_the_descriptor_of_another_file_is_never_written_to(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing)
    writer.write(b"one\n")
    own = next(int(each) for each in os.listdir("/proc/self/fd") if is_same(int(each), writing) and int(each) > writing)
    near, far = socket.socketpair()
    os.dup2(near.fileno(), own)  # as a failed exec of an upgrade may do
    try:
        writer.write(b"two\n")
        assert os.read(reading, 100) == b"one\ntwo\n"
        far.setblocking(False)
        with pytest.raises(BlockingIOError):
            far.recv(10)
    finally:
        writer.close()
        for each in (reading, writing, own):
            os.close(each)
        near.close()
        far.close()


def is_same(one: int, other: int) -> bool:
    try:
        return os.path.samestat(os.fstat(one), os.fstat(other))
    except OSError:
        return False
