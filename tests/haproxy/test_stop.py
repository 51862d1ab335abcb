"""``stop``: in every state of an instance, nothing is left that would make clients wait for ever."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.haproxy.conftest import MakeHaproxy
from tests.haproxy.support import Haproxy, bind_tcp, config, get
from tests.haproxy.test_last_good import slow
from tests.support import can_connect, wait_until


@pytest.fixture
def web(make_haproxy: MakeHaproxy, host: str) -> Haproxy:
    haproxy = make_haproxy(environment={"HOST": host})
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    return haproxy


def test_stop_after_a_crash_closes_the_ports_and_says_what_happened(web: Haproxy, host: str) -> None:
    web.start()
    web.wait_until_settled(1)
    web.kill()
    assert can_connect((host, 8000))
    done = web.command("stop", "web")
    assert done.returncode == 3
    assert f"web: was not running; closed {host}:8000" in done.stdout
    assert not can_connect((host, 8000))
    assert web.status()["state"] == "stopped"
    again = web.command("stop", "web")
    assert (again.returncode, again.stdout) == (3, "web: was not running\n")


def test_stop_with_keep_listeners_after_a_crash_closes_nothing(web: Haproxy, host: str) -> None:
    web.start()
    web.wait_until_settled(1)
    web.kill()
    done = web.command("stop", "--keep-listeners", "web")
    assert done.returncode == 3
    assert can_connect((host, 8000))


def test_stop_ends_a_start_that_still_loads_and_condemns_nothing(web: Haproxy, host: str, tmp_path: Path) -> None:
    web.template.write_text(slow(tmp_path))
    web.start(ready=False)
    wait_until((tmp_path / "loading").exists, "HAProxy loads", log=web.log)
    began = time.monotonic()
    done = web.command("stop", "--timeout", "15", "web")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 10
    assert web.wait() != 1
    assert not can_connect((host, 8000))
    assert not (web.runtime / "web" / "condemned.json").exists()


def test_stop_ends_a_reload_that_still_loads(web: Haproxy, host: str, tmp_path: Path) -> None:
    web.start()
    web.wait_until_settled(1)
    web.template.write_text(slow(tmp_path))
    os.kill(web.pid, signal.SIGUSR2)
    wait_until((tmp_path / "loading").exists, "HAProxy loads", log=web.log)
    done = web.command("stop", "--timeout", "15", "web")
    assert done.returncode == 0, done.stderr
    web.wait()
    assert not can_connect((host, 8000))
    assert web.status()["state"] == "stopped"


def test_stop_of_an_instance_whose_cli_is_full_works(web: Haproxy, host: str) -> None:
    web.start()
    web.wait_until_settled(1)
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.setblocking(False)
            with contextlib.suppress(OSError):
                connection.connect(str(web.runtime / "web" / "master.sock"))
        done = web.command("stop", "--timeout", "15", "web")
        assert done.returncode == 0, done.stderr
    web.wait()
    assert not can_connect((host, 8000))


def test_stop_while_a_reload_checks_does_not_wait_for_it(web: Haproxy, host: str) -> None:
    web.start()
    web.wait_until_settled(1)
    assert get((host, 8000)) == "ok"
    done = web.command("stop", "web")
    assert done.returncode == 0
    assert f"closed {host}:8000" in done.stdout
    reload = web.reload()
    assert reload.returncode == 3
