"""``leave``: from HAProxy on the binder's sockets back to a plain one, without losing a client."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import multibinder
from multibinder.kernel.process import children_of
from tests.haproxy.support import Haproxy, assert_none_lost, config, get
from tests.haproxy.versions import HAPROXY
from tests.support import PATIENCE_S, Binder, clean_environment, require, wait_until
from tests.support.campaign import times
from tests.support.load import Load

RATE = times(300, 1000)


@pytest.fixture(autouse=True)
def root() -> None:
    require("root", os.geteuid() == 0, "leaving a listener open is for root")


@contextlib.contextmanager
def leaving(haproxy: Haproxy, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [str(haproxy.wrapper), "leave", "--name", haproxy.name, "--", HAPROXY, *arguments]
    with (
        haproxy.log_path.open("ab") as log,
        subprocess.Popen(
            command, env=haproxy.environment, cwd=haproxy.directory, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def plain(directory: Path, *binds: str, before: str = "    nbthread 2") -> list[str]:
    file = directory / "plain.cfg"
    file.write_text(config(*binds, before=before))
    return ["-Ws", "-f", str(file), "-p", str(directory / "plain.pid")]


def listed(binder: Binder) -> list[str]:
    with multibinder.Client(binder.socket_path) as client:
        return sorted(each.address for each in client.list())


def cookies(binder: Binder) -> set[int]:
    with multibinder.Client(binder.socket_path) as client:
        return {each.cookie for each in client.list()}


def test_a_plain_haproxy_takes_over_under_load_and_reloads_by_itself(
    binder: Binder, haproxy: Haproxy, run_dir: Path, host: str
) -> None:
    path = run_dir / "web.sock"
    arguments = plain(run_dir, f"{host}:8000", f"{host}:8001 interface lo", f"{host}:8002 shards 2", f"{path} mode 666")
    haproxy.start(arguments=arguments)
    held = listed(binder)
    assert held == [*(f"{host}:{port}" for port in (8000, 8001, 8002, 8002)), f"unix@{path}"]
    with Load([(host, port) for port in (8000, 8001, 8002)], rate=RATE, timeout_s=PATIENCE_S) as load:
        load.mark("the way back")
        with leaving(haproxy, *arguments) as new:
            assert haproxy.process is not None
            haproxy.process.wait(PATIENCE_S)
            wait_until(lambda: listed(binder) == [], "the binder has let go", log=haproxy.log)
            for number in range(3):
                load.mark(f"its own reload {number}")
                before = children_of(new.pid)
                os.kill(new.pid, signal.SIGUSR2)
                wait_until(lambda before=before: set(children_of(new.pid)) - set(before), "it has reloaded")  # type: ignore[misc]
                time.sleep(0.3)
            assert b"leave.sock" not in Path(f"/proc/{new.pid}/cmdline").read_bytes()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
            result = load.stop()
            assert_none_lost(result, haproxy.log() + binder.log())
            os.killpg(new.pid, signal.SIGKILL)
    assert not (haproxy.runtime / haproxy.name / "leave.sock").exists()

    def refused() -> bool:
        with socket.socket() as client:
            return client.connect_ex((host, 8000)) != 0

    wait_until(refused, "no process of ours has the port open any more")


@pytest.mark.parametrize("before", ["    no such keyword", "    chroot /var/empty/nowhere"])
def test_a_plain_haproxy_that_does_not_start_leaves_ours_serving(
    before: str, binder: Binder, haproxy: Haproxy, run_dir: Path, host: str
) -> None:
    haproxy.start(arguments=plain(run_dir, f"{host}:8000"))
    held = cookies(binder)
    broken = run_dir / "broken.cfg"
    broken.write_text(config(f"{host}:8000", before=before))
    with Load([(host, 8000)], rate=100, timeout_s=PATIENCE_S) as load:
        with leaving(haproxy, "-Ws", "-f", str(broken)) as new:
            assert new.wait(PATIENCE_S) != 0
        haproxy.wait_for_log("serves on")
        haproxy.must_reload()
        result = load.stop()
    assert_none_lost(result, haproxy.log() + binder.log())
    assert cookies(binder) == held
    assert get((host, 8000)) == "ok"


def test_with_no_end_the_instance_and_its_claims_stay(
    binder: Binder, haproxy: Haproxy, run_dir: Path, host: str
) -> None:
    haproxy.start(arguments=plain(run_dir, f"{host}:8000"))
    command = [
        str(haproxy.wrapper),
        "leave",
        "--name",
        "web",
        "--no-end",
        "--",
        HAPROXY,
        *plain(run_dir, f"{host}:8000"),
    ]
    with subprocess.Popen(command, env=clean_environment(haproxy.environment), cwd=run_dir) as new:
        wait_until(lambda: children_of(new.pid), "it has a worker")
        assert listed(binder) == [f"{host}:8000"]
        assert haproxy.workers()
        haproxy.must_reload()
        new.terminate()
    assert get((host, 8000)) == "ok"


def test_an_instance_without_listeners_cannot_be_left(haproxy: Haproxy, host: str, run_dir: Path) -> None:
    done = haproxy.command("leave", "--name", "nobody", "--", HAPROXY, "-Ws", "-f", "x.cfg")
    assert (done.returncode, "no instance 'nobody'" in done.stderr) == (4, True), done.stderr
