"""The commands of README.md and the tutorial do what these pages say."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import multibinder
from multibinder.kernel.accept_queue import accept_queue
from tests.support import PATIENCE_S, Binder, clean_environment, require, wait_until

ROOT = Path(__file__).parents[2]
INSTALL = re.compile(r"^python3 -m venv .*?\n(?=cat|cd)", re.MULTILINE | re.DOTALL)


def pasted(page: str) -> list[str]:
    """Return the shell blocks of a page."""
    return re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def run(script: str, directory: Path, host: str) -> str:
    """Run a script below ``directory`` instead of /tmp/mb, on ``host``, with this installation; return its output."""
    require("curl", shutil.which("curl"), "the pages use curl")
    script = INSTALL.sub("cd /tmp/mb\n", script, count=1)
    script = script.replace("/tmp/mb", str(directory)).replace("127.0.0.1", host)
    # Other tests run at the same time, so that this machine is busier than a reader's.
    script = script.replace("sleep 2", "sleep 4")
    script += "\ntouch stop; kill $(jobs -p); wait\n"
    environment = clean_environment({"MULTIBINDER_HAPROXY_RUNTIME_DIR": str(directory / "runtime")})
    environment["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), environment.get("PATH", os.defpath)])
    output = directory / "output"
    with output.open("wb") as file:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        shell.wait(4 * PATIENCE_S)
    except subprocess.TimeoutExpired:
        pytest.fail(f"the script does not end\n{output.read_text()}")
    finally:
        with contextlib.suppress(ProcessLookupError):  # no process is left
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
    return output.read_text()


def test_the_readme_kills_a_server_three_times_and_no_request_is_refused(run_dir: Path, host: str) -> None:
    show, _ = pasted("README.md")
    assert len(show.splitlines()) <= 16
    said = run(show + f"touch stop; multibinder release {host}:8000\n", run_dir, host)
    pids = re.findall(r"answered by process (\d+), which is killed now", said)
    assert len(set(pids)) == 3, said
    assert "curl:" not in said
    assert f"{host}:8000: closed" in said


def test_the_fifteen_lines_lose_no_client(binder: Binder, host: str) -> None:
    page = (ROOT / "docs" / "how-to" / "own-daemon.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    [server] = [block for block in blocks if "start_server" in block]
    assert len([line for line in server.splitlines() if line]) <= 15
    with (
        multibinder.bind(host, 8000, owner="hello", socket_path=binder.socket_path) as listener,
        socket.create_connection((host, 8000), PATIENCE_S) as client,
    ):
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        running = subprocess.Popen(
            [sys.executable, "-X", "dev", "-c", server.replace("127.0.0.1", host)],
            env=clean_environment({"MULTIBINDER_SOCK": str(binder.socket_path)}),
        )
        try:
            wait_until(lambda: accept_queue(listener).length == 0, "the client is accepted")
            running.terminate()
            assert running.wait(PATIENCE_S) == 0
        finally:
            running.kill()
            running.wait()
        assert b"".join(iter(lambda: client.recv(4096), b"")).endswith(b"hello\n")


def test_the_readme_reloads_haproxy(run_dir: Path, host: str) -> None:
    require("haproxy", os.path.exists("/usr/sbin/haproxy"), "the README starts HAProxy")
    binder = "export MULTIBINDER_SOCK=/tmp/mb/control.sock\nmultibinder serve --quiet &\n"
    waits = "until [ -S control.sock ]; do sleep 0.1; done\n"
    said = run(binder + waits + pasted("README.md")[1], run_dir, host)
    assert re.search(r"^web: reloaded in ", said, re.MULTILINE), said
    assert re.search(r"^hello$", said, re.MULTILINE), said
    assert f"web: stopped, closed {host}:8080" in said


@pytest.fixture
def said_by_the_tutorial(run_dir: Path, host: str) -> str:
    require("haproxy", os.path.exists("/usr/sbin/haproxy"), "the tutorial starts HAProxy")
    return run("".join(pasted("docs/tutorial.md")), run_dir, host)


def test_the_tutorial_does_what_it_says(said_by_the_tutorial: str, host: str) -> None:
    said = said_by_the_tutorial
    assert "curl:" not in said
    assert "Traceback" not in said
    answers = re.findall(r"^hello from (\d+)$", said, re.MULTILINE)
    assert len(answers) == 6, said
    assert len(set(answers)) == 3, said
    assert said.count("stopped, with exit code 0") == 3, said
    [(count, copies, lost)] = re.findall(r"^(\d+) answers from (\d+) copies, (\d+) lost$", said, re.MULTILINE)
    assert int(count) >= 20, said
    assert (copies, lost) == ("4", "0"), said
    for expected in (
        "upgraded: ",
        f"{host}:8100 shard 1",
        "a datagram arrived while nobody was there",
        f"udp@{host}:8100: closed",
        f"ok: 1 file(s), {host}:8080",
        "bind_tcp() has no option oops",
        "refused, with exit code 1",
        "web: reloaded in ",
        f"added   {host}:8081",
        f"{host}:8000: closed",
        f"web: stopped, closed {host}:8080, {host}:8081",
    ):
        assert expected in said, said
    # The second form is for a machine where not every process can be seen.
    assert "no process but the binder has it open" in said or "NOT CHECKED" in said, said
