"""A plain HAProxy is adopted while it serves, and replaced by one that gets its listeners from the binder."""

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
from tests.haproxy.conftest import MakeHaproxy
from tests.haproxy.support import Haproxy, assert_none_lost, bind_tcp, config, get
from tests.haproxy.versions import HAPROXY
from tests.support import PATIENCE_S, Binder, clean_environment, require, wait_until
from tests.support import multibinder as command
from tests.support.campaign import times
from tests.support.load import Load

#: Connections a second.
RATE = times(400, 1000)


@pytest.fixture(autouse=True)
def root() -> None:
    require("root", os.geteuid() == 0, "copying another process's sockets needs root")


@pytest.fixture
def plain(run_dir: Path, host: str) -> Iterator[subprocess.Popen[bytes]]:
    """A HAProxy that has never heard of a binder, with two threads, a sharded bind, and a ``stats socket``."""
    file = run_dir / "plain.cfg"
    stats = f"    nbthread 2\n    stats socket {run_dir}/stats.sock mode 600"
    file.write_text(config(f"{host}:8000", f"{host}:8001", before=stats))
    with subprocess.Popen([HAPROXY, "-Ws", "-f", str(file)], env=clean_environment(), cwd=run_dir) as process:
        try:
            wait_until(lambda: serves(host), "the plain HAProxy serves")
            yield process
        finally:
            for pid in children_of(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.kill()


def serves(host: str) -> bool:
    with contextlib.suppress(OSError):
        return get((host, 8000), 1) == "ok"
    return False


def adopt(binder: Binder, *arguments: object) -> subprocess.CompletedProcess[str]:
    done = command("adopt", "--socket", binder.socket_path, *map(str, arguments))
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{binder.log()}"
    return done


def test_a_live_haproxy_is_adopted_and_replaced_under_load_without_losing_a_client(
    plain: subprocess.Popen[bytes], binder: Binder, make_haproxy: MakeHaproxy, host: str
) -> None:
    new = make_haproxy()
    new.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    with Load([(host, 8000), (host, 8001)], rate=RATE, timeout_s=PATIENCE_S) as load:
        load.mark("adoption")
        said = adopt(binder, "--owner", "haproxy@web", "--pid", plain.pid)
        assert f"{host}:8000: adopted from haproxy" in said.stdout
        assert "stats.sock: left alone: this program makes the path anew at each reload" in said.stderr
        load.mark("its own reload")
        os.kill(plain.pid, signal.SIGUSR2)
        time.sleep(0.5)
        load.mark("the new one starts")
        new.start()
        load.mark("the old one ends")
        os.kill(plain.pid, signal.SIGUSR1)
        plain.wait(PATIENCE_S)
        time.sleep(0.1)
        load.mark("the new one reloads")
        new.must_reload()
        result = load.stop()
    assert_none_lost(result, new.log() + binder.log())
    with multibinder.Client(binder.socket_path) as client:
        assert sorted((each.address, each.owners) for each in client.list()) == [
            (f"{host}:8000", ["haproxy@web"]),
            (f"{host}:8001", ["haproxy@web"]),
        ]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_haproxy_that_ends_hard_after_its_adoption_refuses_no_client(
    plain: subprocess.Popen[bytes], binder: Binder, haproxy: Haproxy, host: str, number: signal.Signals
) -> None:
    """It cuts off the connections that it had accepted, and no others."""
    haproxy.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    with Load([(host, 8000), (host, 8001)], rate=RATE, timeout_s=PATIENCE_S) as load:
        adopt(binder, "--owner", "haproxy@web", "--pid", plain.pid)
        for pid in [*children_of(plain.pid), plain.pid] if number == signal.SIGKILL else [plain.pid]:
            os.kill(pid, number)
        plain.wait(PATIENCE_S)
        haproxy.start()
        result = load.stop()
    assert (result.total.refused, result.total.timed_out) == (0, 0), result.table()
    assert result.total.reset < RATE / 20, result.table()
    assert result.total.ok == result.total.tried - result.total.reset, result.table()


def test_the_stats_socket_of_haproxy_is_adopted_if_it_is_named(
    plain: subprocess.Popen[bytes], binder: Binder, run_dir: Path
) -> None:
    """HAProxy has bound it under another name, and renamed it."""
    path = run_dir / "stats.sock"
    assert f"unix@{path}: adopted from haproxy" in adopt(binder, f"unix@{path}").stdout
    plain.kill()
    plain.wait(PATIENCE_S)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
