"""A shortage of a resource costs the request that meets it. The binder and its listeners go on."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import Client, MultibinderError
from multibinder.kernel.descriptors import count_own
from tests.support import Binder, RawClient, require, wait_until

HELLO = b'{"jsonrpc":"2.0","id":1,"method":"hello","params":[]}'


@contextlib.contextmanager
def injected(binder: Binder, call: str, error: str, directory: Path) -> Iterator[None]:
    """Let each such system call of the binder fail, as strace(1) does it."""
    program = shutil.which("strace")
    require("strace", program, "injecting errors into system calls needs strace")
    trace = directory / "trace"
    strace = subprocess.Popen(
        [
            str(program),
            "-f",
            "-p",
            str(binder.pid),
            "-e",
            f"trace={call}",
            "-e",
            f"inject={call}:error={error}",
            "-o",
            trace,
        ],
        stderr=subprocess.PIPE,
    )
    try:
        assert strace.stderr is not None
        line = strace.stderr.readline()
        require("strace", b"attached" in line, f"strace cannot trace: {line!r}")
        yield
    finally:
        strace.terminate()
        strace.wait()
        assert strace.stderr is not None
        strace.stderr.close()


def test_the_number_of_open_descriptors_is_known_without_a_free_one() -> None:
    assert count_own() == len(os.listdir("/proc/self/fd")) - 1
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = count_own()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        assert count_own() == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


_READY_WITHOUT_DESCRIPTOR = """
import os, resource, sys
from multibinder.binder.ready import DETACHED, report_ready
os.environ[DETACHED] = "1"
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
report_ready()
sys.exit(DETACHED in os.environ or os.fstat(2).st_rdev != os.fstat(0).st_rdev)
"""


def test_a_detached_process_reports_ready_without_a_free_descriptor() -> None:
    command = [sys.executable, "-P", "-c", _READY_WITHOUT_DESCRIPTOR]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"READY\n")


def test_a_limit_lowered_below_what_is_open_costs_new_descriptors_only(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
        before = resource.prlimit(binder.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(binder.pid, resource.RLIMIT_NOFILE, (4, before[1]))
        with pytest.raises(MultibinderError, match="too many open files"):
            client.bind([(host, 8001)])
        client.bind([(host, 8000)])[0].close()
        assert client.status().listeners[0].address == f"{host}:8000"
        assert "cannot-look" in binder.log_path.read_text()
        with RawClient(binder.socket_path) as waiting:
            waiting.send(HELLO)
            binder.wait_for_log("event=cannot-accept")
            resource.prlimit(binder.pid, resource.RLIMIT_NOFILE, before)
            assert waiting.reply()["result"]["pid"] == binder.pid
        client.bind([(host, 8001)])[0].close()


@pytest.mark.parametrize("free", range(4))
def test_a_client_is_taken_for_another_user_at_no_number_of_free_descriptors(
    binder: Binder, host: str, free: int
) -> None:
    with Client(binder.socket_path) as client:
        client.bind([(host, 8000)], owner="web")[0].close()
        client.hello()
        before = resource.prlimit(binder.pid, resource.RLIMIT_NOFILE)
        lowest = lowest_free(binder.pid, free)
        resource.prlimit(binder.pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
        try:
            with RawClient(binder.socket_path) as raw:
                raw.send(HELLO)
                # Either it waits until there are more descriptors, or it is known.
                if free < 3:
                    binder.wait_for_log("event=cannot-accept")
                    resource.prlimit(binder.pid, resource.RLIMIT_NOFILE, before)
                assert raw.reply()["result"]["uid"] == os.geteuid()
        finally:
            resource.prlimit(binder.pid, resource.RLIMIT_NOFILE, before)
        [released] = client.release([(host, 8000)], owner="web")
        assert (released.outcome, released.had_claim) == ("closed", True)


def lowest_free(pid: int, free: int) -> int:
    """Return the limit with which a process can open so many descriptors and no more (getrlimit(2))."""
    used = {int(number) for number in os.listdir(f"/proc/{pid}/fd")}
    unused = (number for number in range(4096) if number not in used)
    return next(number for index, number in enumerate(unused) if index == free)


@pytest.mark.skipif(os.geteuid() != 0, reason="strace attaches as root")
@pytest.mark.parametrize("error", ["ENOSPC", "ENOMEM"])
def test_a_client_that_cannot_be_watched_is_turned_away_and_no_other(
    binder: Binder, host: str, run_dir: Path, error: str
) -> None:
    with Client(binder.socket_path) as client, RawClient(binder.socket_path) as other:
        client.bind([(host, 8000)])[0].close()
        assert "result" in other.ask(HELLO)
        with injected(binder, "epoll_ctl", error, run_dir):
            with RawClient(binder.socket_path) as refused:
                assert "the binder's log says more" in refused.reply()["error"]["message"]
            assert "result" in other.ask(HELLO)
            socket.create_connection((host, 8000)).close()
        wait_until(lambda: "client-failed" in binder.log_path.read_text(), "it is logged", log=binder.log)
        with RawClient(binder.socket_path) as served:
            assert "result" in served.ask(HELLO)


@pytest.mark.skipif(os.geteuid() != 0, reason="strace attaches as root")
def test_a_status_that_cannot_be_made_is_an_error_and_nobody_waits_for_it(
    binder: Binder, host: str, run_dir: Path
) -> None:
    with Client(binder.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
        with injected(binder, "prlimit64", "EPERM", run_dir):
            for fresh in (True, False):
                with pytest.raises(MultibinderError, match="Internal error: no status; see the binder's log"):
                    client.status(fresh=fresh)
        assert "Operation not permitted" in binder.wait_for_log("event=callback-failed")
        assert len(client.status().listeners) == 1
