"""``release --leave-open``: the binder lets go, and the processes that have the listener serve on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import Client, RequestError
from tests.support import Binder, as_user, require, serving_pid, wait_until
from tests.support import multibinder as command
from tests.support.installation import interpreter_for_everybody


@pytest.fixture
def guarded(run_dir: Path) -> Iterator[Binder]:
    with Binder(run_dir, "--guard") as binder:
        binder.wait_until_ready()
        yield binder


def connects(family: socket.AddressFamily, address: str | tuple[str, int]) -> bool:
    with socket.socket(family) as client, contextlib.suppress(OSError):
        client.settimeout(5)
        client.connect(address)
        return True
    return False


def test_a_listener_that_is_left_open_accepts_and_is_not_the_binders_any_more(
    guarded: Binder, host: str, run_dir: Path
) -> None:
    path = str(run_dir / "l.sock")
    with Client(guarded.socket_path) as client:
        held = client.bind([(host, 8000), f"unix@{path}"], owner="web")
        shards = client.bind([(host, 8001)], owner="web", shards=2)
        names = set(os.listdir(run_dir))
        waiting = socket.create_connection((host, 8000))
        done = command(
            *("release", "--socket", guarded.socket_path, "--leave-open", "--owner", "web"),
            *(f"{host}:8000", f"{host}:8001", f"unix@{path}"),
        )
        assert done.returncode == 0, done.stderr
        assert f"{host}:8000: left open" in done.stdout
        assert client.list() == []
    # A binder that is started again, with the keeper's sockets and the records, does not have them either.
    killed = serving_pid(guarded.socket_path)
    os.kill(killed, signal.SIGKILL)
    serving_pid(guarded.socket_path, not_=killed)
    with Client(guarded.socket_path) as client:
        assert client.list() == []
        assert client.status().listeners == []
    accepted, _ = held[0].accept()
    accepted.close()
    waiting.close()
    assert connects(socket.AF_INET, (host, 8000))
    assert connects(socket.AF_UNIX, path)
    assert all(connects(socket.AF_INET, (host, 8001)) for _ in range(8))
    assert {name for name in names - set(os.listdir(run_dir)) if "l.sock" in name}, "the hidden name has gone"
    assert os.path.exists(path)
    for each in (*held, *shards):
        each.close()
    wait_until(lambda: not connects(socket.AF_INET, (host, 8000)), "the port closes with the last holder")


def test_a_claim_of_another_owner_keeps_it(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        for owner in ("web", "api"):
            client.bind([(host, 8000)], owner=owner)[0].close()
        [left] = client.release([(host, 8000)], owner="web", leave_open=True)
        assert (left.outcome, left.owners, left.had_claim) == ("kept", ["api"], True)
        [left] = client.release([(host, 8000)], owner="web", leave_open=True)
        assert (left.outcome, left.had_claim) == ("kept", False)
        [left] = client.release([(host, 8000)], owner="api", leave_open=True)
        assert left.outcome == "left-open"
        [left] = client.release([(host, 8000)], owner="api", leave_open=True)
        assert left.outcome == "absent"
    assert not connects(socket.AF_INET, (host, 8000)), "without any holder it closes"


def test_a_listener_that_drains_is_left_to_its_drain(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client, contextlib.ExitStack() as stack:
        [held] = client.bind([(host, 8000)], owner="web")
        stack.callback(held.close)
        stack.enter_context(socket.create_connection((host, 8000)))  # which nobody accepts
        drain = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "multibinder", "release", "--socket", str(binder.socket_path)),
                *("--drain", "60", "--owner", "web", f"{host}:8000"),
            ],
            stdout=subprocess.DEVNULL,
        )
        stack.callback(drain.wait)
        stack.callback(drain.kill)
        wait_until(lambda: client.list()[0].draining, "it drains")
        assert client.release([(host, 8000)], owner="web", leave_open=True)[0].outcome == "kept"
        assert client.list()[0].draining


def test_only_root_and_the_binders_own_user_may_leave_one_open(run_dir: Path, host: str) -> None:
    require("root", os.geteuid() == 0, "another user needs root")
    run_dir.chmod(0o711)
    with Binder(run_dir, "--mode", "0666") as binder:
        binder.wait_until_ready()
        refuse_another_user(binder, host)


def refuse_another_user(binder: Binder, host: str) -> None:
    element = {"address": host, "port": 8000, "owner": "web", "leave_open": True}
    request = json.dumps({"jsonrpc": "2.0", "method": "release", "id": 1, "params": [element]})
    program = (
        "import socket, sys; client = socket.socket(socket.AF_UNIX)\n"
        f"client.connect({str(binder.socket_path)!r}); client.sendall({request.encode()!r})\n"
        "sys.stderr.write(client.recv(65536).decode())"
    )
    with Client(binder.socket_path) as client:
        client.bind([(host, 8000)], owner="web")[0].close()
        done = subprocess.run(
            [*as_user(4242), str(interpreter_for_everybody()), "-P", "-c", program],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "only root and the binder's own user may" in done.stderr, done.stderr
        assert client.list()[0].owners == ["web"]


def test_a_drain_and_leaving_open_exclude_each_other(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client, pytest.raises(RequestError, match="leave out drain"):
        client.release([(host, 8000)], drain=1, leave_open=True)
    done = command("release", "--socket", binder.socket_path, "--leave-open", "--drain", "1", f"{host}:8000")
    assert (done.returncode, "leave out --drain" in done.stderr) == (2, True)
