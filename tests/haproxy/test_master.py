"""The truth about HAProxy's master: it is there, it answers, it is gone."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator

import msgspec
import pytest

import multibinder
from tests.haproxy.conftest import MakeHaproxy
from tests.haproxy.support import HAPROXY, Haproxy, bind_tcp, config, get
from tests.support import Binder, can_connect, wait_until

#: The connections that HAProxy's master takes on its CLI, and some more that wait.
CONNECTIONS = 12


@pytest.fixture
def web(haproxy: Haproxy, host: str) -> Haproxy:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    return haproxy.start()


@contextlib.contextmanager
def all_connections_of_the_cli(web: Haproxy) -> Iterator[None]:
    """Take every connection of the master's CLI, as a monitor that never closes one does."""
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(web.master().path)
            connection.sendall(b"prompt\n")
        wait_until(lambda: web.processes() is None, "the CLI is full", log=web.log)
        yield


@pytest.mark.every_haproxy
def test_a_master_whose_cli_is_full_runs_and_does_not_answer(web: Haproxy, host: str) -> None:
    with all_connections_of_the_cli(web):
        status = web.command("status", "web")
        assert (status.returncode, status.stderr) == (5, "")
        assert f"web: degraded, master {web.pid}" in status.stdout
        assert f"PROBLEM  HAProxy's master (pid {web.pid}) runs, but does not answer at " in status.stdout
        reload = web.command("reload", "--timeout", "5", "web")
        assert reload.returncode == 5
        assert reload.stderr.startswith(
            f"multibinder-haproxy: HAProxy's master (pid {web.pid}) runs, but does not answer"
        )
        second = web.command("run", "--name", "web", "--", HAPROXY, "-Ws", "-f", str(web.template))
        assert second.returncode == 1
        assert f"web is running already, as process {web.pid}; " in second.stderr
        assert get((host, 8000)) == "ok"
    wait_until(web.processes, "the CLI answers again", log=web.log)
    web.must_reload()


def test_reload_all_and_status_of_all_go_past_an_instance_that_does_not_answer(
    make_haproxy: MakeHaproxy, host: str
) -> None:
    a, b, c = (make_haproxy(name) for name in "abc")
    for number, each in enumerate((a, b, c)):
        each.template.write_text(config(bind_tcp((host, 8000 + number))))
        each.start()
    before = [each.workers() for each in (a, b, c)]
    with all_connections_of_the_cli(b):
        status = a.command("status")
        assert status.returncode == 5
        assert [line.split(":")[0] for line in status.stdout.splitlines() if line[0] != " "] == ["a", "b", "c"]
        reload = a.command("reload", "--all", "--keep-going", "--timeout", "5")
        assert (reload.returncode, "failed: b" in reload.stderr) == (1, True), reload.stderr
    after = [each.workers() for each in (a, b, c)]
    assert [old != new for old, new in zip(before, after, strict=True)] == [True, False, True]


@pytest.mark.every_haproxy
def test_a_master_whose_runtime_directory_was_removed_is_found_and_no_second_one_starts(
    web: Haproxy, host: str
) -> None:
    shutil.rmtree(web.runtime / "web")
    for command in ("status", "reload", "check", "stop"):
        done = web.command(command, "web")
        assert done.returncode == 5, (command, done)
        assert f"HAProxy's master (pid {web.pid}) runs, but its directory {web.runtime}/web was removed" in done.stderr
    second = web.command("run", "--name", "web", "--", HAPROXY, "-Ws", "-f", str(web.template))
    assert second.returncode == 1
    assert f"web is running already, as process {web.pid}; " in second.stderr
    assert get((host, 8000)) == "ok"
    # as the message says
    os.kill(web.pid, signal.SIGUSR2)
    wait_until(lambda: web.command("status", "web").returncode == 0, "the directory is there again", log=web.log)
    web.must_reload()


@pytest.mark.every_haproxy
def test_a_frontend_that_was_disabled_on_the_cli_is_a_problem_with_what_to_do_instead(
    haproxy: Haproxy, binder: Binder, host: str
) -> None:
    """HAProxy does not close a socket that it inherited: clients wait."""
    if haproxy.version < (2, 6):
        pytest.skip("HAProxy before 2.6 goes on accepting")
    haproxy.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    haproxy.start()
    [worker] = haproxy.workers()
    haproxy.master().ask(f"@!{worker} disable frontend web")
    status = haproxy.command("status", "web")
    assert status.returncode == 1
    assert (
        "PROBLEM  disabled or shut down on HAProxy's CLI: frontend web; clients of its bind_tcp() are not"
        in status.stdout
    )
    assert haproxy.status()["closed_frontends"] == ["web"]
    for port in (8000, 8001):
        # as the problem says
        with multibinder.Client(binder.socket_path) as client:
            client.release([(host, port)], owner="haproxy@web")
        assert not can_connect((host, port))
    haproxy.must_reload()
    assert (get((host, 8000)), get((host, 8001))) == ("ok", "ok")
    assert haproxy.command("status", "web").returncode == 0


def test_a_load_after_which_all_is_dead_is_not_said_to_leave_a_worker_serving(web: Haproxy, host: str) -> None:
    """HAProxy 2.6 ends everything when its new worker dies at its start."""
    web.template.write_text(config(bind_tcp((host, 8000)), before="    chroot /nonexistent/jail"))
    done = web.command("reload", "--timeout", "20", "web")
    assert done.returncode == 1
    assert "serves as before" not in done.stderr
    assert "NO WORKER SERVES: clients wait in the queue until HAProxy is started again" in done.stderr
    with contextlib.suppress(ProcessLookupError):
        web.kill()  # now and then HAProxy 2.6 leaves its master and a stopped worker behind
    stopped = web.command("status", "web").stdout
    assert stopped.startswith("web: stopped\n")
    assert stopped.endswith(
        f"  open     {host}:8000\n"
        "  clients wait there until HAProxy is started again; 'multibinder-haproxy stop web' closes them\n"
    )
    assert web.status()["waiting_on"] == [f"{host}:8000"]


def test_status_shows_a_configuration_that_a_start_does_not_try_again(web: Haproxy) -> None:
    record = {"digest": "d", "inputs": "i", "reason": "HAProxy ended\n[ALERT] Cannot chroot", "at": time.time() - 300}
    web.runtime.joinpath("web", "condemned.json").write_bytes(msgspec.json.encode(record))
    shown = web.command("status", "web").stdout
    assert "  condemned 5 min ago: HAProxy ended\n           [ALERT] Cannot chroot\n" in shown
    assert web.status()["condemned"] == record
