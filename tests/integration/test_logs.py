"""The log has one line for each event, in the format for its reader."""

from __future__ import annotations

import datetime
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from multibinder import Client
from tests.conftest import StartBinder
from tests.support import Binder, clean_environment, wait_until


def bind_and_release(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        for _ in range(2):
            client.bind([(host, 8000)], owner="haproxy@web")[0].close()
        client.release([(host, 8000)], owner="haproxy@web")


def lines(binder: Binder) -> list[str]:
    return binder.log_path.read_text().splitlines()


def test_a_line_is_keys_and_values(binder: Binder, host: str) -> None:
    bind_and_release(binder, host)
    binder.stop()
    stamp = r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    who = f"pid={os.getpid()} uid={os.geteuid()}"
    expected = [
        rf"{stamp} level=info event=serving socket={binder.socket_path} pid={binder.pid} version=\S+ inherited=0",
        rf"{stamp} level=info event=bound address={host}:8000 owner=haproxy@web backlog=\d+ {who}",
        rf"{stamp} level=info event=released address={host}:8000 owner=haproxy@web outcome=closed {who}",
        rf"{stamp} level=info event=stopping signal=SIGTERM listeners=0",
        rf"{stamp} level=info event=stopped",
    ]
    assert len(lines(binder)) == len(expected), binder.log()
    for line, pattern in zip(lines(binder), expected, strict=True):
        assert re.fullmatch(pattern, line)


def test_a_value_with_spaces_is_quoted(start_binder: StartBinder, run_dir: Path) -> None:
    path = run_dir / "with space.sock"
    binder = start_binder(command=[sys.executable, "-m", "multibinder", str(path)])
    assert f'socket="{path}"' in binder.wait_for_log("event=serving")


def test_json_is_one_object_a_line(start_binder: StartBinder, host: str) -> None:
    binder = start_binder("--log-format", "json")
    bind_and_release(binder, host)
    binder.stop()
    events = [json.loads(line) for line in lines(binder)]
    assert [event["event"] for event in events] == ["serving", "bound", "released", "stopping", "stopped"]
    for event in events:
        assert event["level"] == "info"
        assert datetime.datetime.fromisoformat(event["time"]).tzinfo is not None
    assert events[1]["address"] == f"{host}:8000"
    assert events[1]["owner"] == "haproxy@web"
    assert events[1]["pid"] == os.getpid()


def test_verbose_logs_every_handoff(start_binder: StartBinder, host: str) -> None:
    binder = start_binder("-v")
    bind_and_release(binder, host)
    line = binder.wait_for_log("event=handed-over")
    assert f"level=debug event=handed-over address={host}:8000 owner=haproxy@web" in line


def test_quiet_logs_only_warnings_and_errors(start_binder: StartBinder, host: str) -> None:
    binder = start_binder("-q")
    bind_and_release(binder, host)
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(str(binder.socket_path))
        rude.sendall(b"nonsense")
        binder.wait_for_log("event=protocol-error")
    binder.stop()
    [line] = lines(binder)
    assert "level=warning event=protocol-error" in line


def test_lines_for_the_journal_have_its_priorities_and_leave_the_time_to_it(run_dir: Path) -> None:
    reading, writing = os.pipe()
    stream = os.fstat(writing)
    path = run_dir / "mb.sock"
    with os.fdopen(reading) as journal:
        process = subprocess.Popen(
            [sys.executable, "-m", "multibinder", "serve", "-v", "--socket", str(path)],
            env=clean_environment({"JOURNAL_STREAM": f"{stream.st_dev}:{stream.st_ino}"}),
            stdin=subprocess.DEVNULL,
            stderr=writing,
        )
        try:
            os.close(writing)
            assert journal.readline().startswith(f"<6>level=info event=serving socket={path} ")
            with socket.socket(socket.AF_UNIX) as rude:
                rude.connect(str(path))
                rude.sendall(b"nonsense")
                assert journal.readline().startswith("<4>level=warning event=protocol-error ")
            with Client(path) as client:
                for _ in range(2):
                    client.bind([("127.0.0.1", 0)])[0].close()
            assert journal.readline().startswith("<6>level=info event=bound ")
        finally:
            process.terminate()
            process.wait(20)


def test_a_stderr_that_is_not_the_journal_gets_no_priorities(start_binder: StartBinder) -> None:
    binder = start_binder(environment={"JOURNAL_STREAM": "1:1"})
    assert binder.wait_for_log("event=serving").startswith("time=")


def test_a_line_is_written_as_soon_as_its_event_happens(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
    wait_until(lambda: f"event=bound address={host}:8000" in binder.log(), "the line is in the log", timeout_s=1)


def test_a_log_that_cannot_be_written_does_not_stop_the_binder(run_dir: Path) -> None:
    path = run_dir / "mb.sock"
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "multibinder", "serve", "-v", "--socket", str(path)],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stderr=full,
        )
    try:
        wait_until(path.is_socket, "it serves")
        wait_until(lambda: answers(path), "it answers")
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def answers(path: Path) -> bool:
    try:
        with Client(path) as client:
            return client.hello().pid > 0
    except ConnectionError:
        return False
