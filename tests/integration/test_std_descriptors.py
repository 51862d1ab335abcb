"""Closed standard descriptors and a wrong LISTEN_FDS: the binder starts, and its log goes nowhere else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from multibinder import Client
from tests.support import clean_environment, wait_until


def serve(path: Path, redirections: str, *options: str, environment: dict[str, str] | None = None) -> str:
    """Start a binder with closed descriptors, bind, and return what its socket's client and log got unexpectedly."""
    process = subprocess.Popen(
        [
            *("/bin/sh", "-c", f'export LISTEN_PID=$$; exec "$@" {redirections}', "sh"),
            *(sys.executable, "-m", "multibinder", "serve", "-v", "--socket", str(path), *options),
        ],
        env=clean_environment(environment or {}),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        wait_until(lambda: answers(path) or process.poll() is not None, "it serves")
        assert process.poll() is None, process.communicate()
        with socket.socket(socket.AF_UNIX) as raw, Client(path) as client:
            raw.connect(str(path))
            for _ in range(3):
                client.bind([("127.0.0.1", 0)])[0].close()
            assert client.hello().pid
            raw.setblocking(False)
            with pytest.raises(BlockingIOError):
                raw.recv(100)
        for number in ("0", "1", "2"):
            if f"{number}<&-" in redirections or f"{number}>&-" in redirections:
                assert os.readlink(f"/proc/{process.pid}/fd/{number}") == os.devnull
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    return log.decode()


def answers(path: Path) -> bool:
    try:
        with Client(path, timeout=5) as client:
            return client.hello().pid > 0
    except OSError:
        return False


@pytest.mark.parametrize("guard", [[], ["--guard"]], ids=["binder", "guard"])
@pytest.mark.parametrize("closed", ["0<&- 1>&- 2>&-", "2>&-", "0<&-"])
def test_with_standard_descriptors_closed_no_log_line_reaches_a_client(
    run_dir: Path, closed: str, guard: list[str]
) -> None:
    serve(run_dir / "mb.sock", closed, *guard)


@pytest.mark.parametrize("value", ["-1", "0x3", "", "\N{SUPERSCRIPT TWO}", "99999999999", "9" * 6000, "3000000", "1e9"])
def test_a_wrong_listen_fds_neither_stops_nor_delays_the_start_nor_fills_the_log(run_dir: Path, value: str) -> None:
    log = serve(run_dir / "mb.sock", "", environment={"LISTEN_FDS": value, "LISTEN_FDNAMES": "x" * 50_000})
    assert len(log) < 10_000
