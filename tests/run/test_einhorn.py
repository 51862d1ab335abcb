"""einhorn's acknowledgement, as its clients in Ruby and Go send it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multibinder.launch.run.einhorn import EinhornServer, is_acknowledgement
from multibinder.launch.run.readiness.choice import check_of
from multibinder.launch.run.settings import Readiness
from multibinder.launch.run.tasks import Loop, sleep
from tests.run.copy_of_a_program import Copy, copies, run
from tests.support.processes import descriptors_unchanged

#: YAML of Ruby's Einhorn::Client, with keys that are strings or symbols, and JSON of others.
ACKNOWLEDGEMENTS = [
    b'{"command":"worker:ack","pid":%d}\n',
    b'{"pid": %d, "command" : "worker:ack"}\n',
    b"---%%0Acommand: worker:ack%%0Apid: %d%%0A\n",
    b"---%%0A:command: worker:ack%%0A:pid: %d%%0A\n",
    b"--- %%0A\"command\": 'worker:ack'%%0Apid: %d%%0A\n",
]

CONNECT = """
import os, socket, time
def connect():
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(os.environ["EINHORN_SOCK_PATH"])
    return sock
"""


@pytest.fixture
def path(run_dir: Path) -> str:
    return str(run_dir / "einhorn.sock")


@pytest.fixture
def start(path: str) -> Iterator[Callable[[str], Copy]]:
    with copies() as start:
        yield lambda code: start(f"{CONNECT}\n{code}\ntime.sleep(60)", environment={"EINHORN_SOCK_PATH": path})


@pytest.fixture
def loop() -> Loop:
    return Loop(lambda name, error: pytest.fail(f"{name}: {error!r}"))


@pytest.mark.parametrize("text", ACKNOWLEDGEMENTS)
def test_an_acknowledgement_in_each_form_is_one_when_its_line_is_whole(text: bytes) -> None:
    whole = text % 12
    assert is_acknowledgement(whole)
    assert not is_acknowledgement(whole[:-1])


@pytest.mark.parametrize("text", [b"", b"\n", b'{"command":"worker:acknowledge"}\n', b"worker:ack\n", b"\xff\xfe%zz\n"])
def test_something_else_is_none(text: bytes) -> None:
    assert not is_acknowledgement(text)


def test_a_copy_that_acknowledges_is_ready_also_byte_by_byte(
    path: str, start: Callable[[str], Copy], loop: Loop
) -> None:
    with descriptors_unchanged():
        server = EinhornServer(path, loop, lambda: {copy.pid: copy.acked})
        copy = start(
            "sock = connect()\n"
            'for byte in b\'{"command":"worker:ack","pid":1}\\n\': sock.send(bytes([byte])); time.sleep(0.001)'
        )
        check = check_of(Readiness(einhorn=True))
        assert run(check.wait(copy), server.serve(), loop=loop) == "it acknowledged to einhorn"
        server.close()
        copy.close()


def test_another_process_acknowledges_nothing_and_clients_that_say_nothing_keep_nobody_out(
    path: str, start: Callable[[str], Copy], loop: Loop
) -> None:
    server = EinhornServer(path, loop, lambda: {copy.pid: copy.acked})
    silent = []
    for _ in range(16):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        silent.append(sock)
    silent[0].send(b'{"command":"worker:ack","pid":1}\n')
    copy = start('kept = [connect() for _ in range(5)]; sock = connect(); sock.send(b\'{"command":"worker:ack"}\\n\')')

    begun = time.monotonic()
    assert run(check_of(Readiness(einhorn=True)).wait(copy), server.serve(), loop=loop)
    assert time.monotonic() - begun < 9, "it waited for the silent ones"
    for sock in silent:
        sock.close()
    server.close()


def test_the_acknowledgement_of_a_stranger_is_not_that_of_the_copy(
    path: str, start: Callable[[str], Copy], loop: Loop
) -> None:
    server = EinhornServer(path, loop, lambda: {copy.pid: copy.acked})
    copy = start("pass")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.send(b'{"command":"worker:ack","pid":%d}\n' % copy.pid)

        async def main() -> bytes:
            sock.setblocking(False)
            while True:
                try:
                    return sock.recv(100)
                except BlockingIOError:
                    await sleep(0.01)
                except ConnectionResetError:
                    return b""

        assert run(main(), server.serve(), loop=loop) == b""
    assert not copy.acked.is_set
    server.close()
    assert not os.path.exists(path)
