"""The daemon starts, notifies its supervisor, sleeps while idle, and stops."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from multibinder import Client
from tests.conftest import StartBinder
from tests.support import (
    PATIENCE_S,
    Binder,
    RawClient,
    can_connect,
    clean_environment,
    multibinder,
    request,
    serving_pid,
    wait_until,
)


def voluntary_switches(pid: int) -> int:
    """Return how often the process has gone to sleep: proc_pid_status(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("voluntary_ctxt_switches")).split()[1])


def test_the_binder_notifies_ready_when_clients_can_connect_and_stopping_when_it_stops(run_dir: Path) -> None:
    with Binder(run_dir) as binder:
        assert binder.wait_for_notification() == f"READY=1\nSTATUS=Serving {binder.socket_path}"
        with RawClient(binder.socket_path) as client:
            assert client.ask(request("hello"))["result"]["pid"] == binder.pid
        binder.send_signal(signal.SIGTERM)
        assert binder.wait_for_notification() == "STOPPING=1\nSTATUS=Stopping on SIGTERM"
        assert binder.wait() == 0


def test_hello_names_the_binder_that_answers(binder: Binder) -> None:
    with Client(binder.socket_path) as client:
        hello = client.hello()
    assert (hello.name, hello.pid, hello.protocol) == ("multibinder", binder.pid, 1)
    assert hello.capabilities == [
        "hello",
        "bind",
        "check",
        "list",
        "release",
        "status",
        "upgrade",
        "move",
        "adopt",
        "drain",
        "leave-open",
    ]
    assert hello.uid == os.geteuid()
    assert hello.version == multibinder("--version").stdout.split()[-1]


def test_the_old_form_with_only_a_path_serves_at_that_path(run_dir: Path, start_binder: StartBinder) -> None:
    path = run_dir / "old.sock"
    binder = start_binder(command=[sys.executable, "-m", "multibinder", str(path)])
    with Client(path) as client:
        assert client.hello().pid == binder.pid


def test_the_old_form_takes_the_options_of_serve(run_dir: Path, start_binder: StartBinder) -> None:
    path = run_dir / "old.sock"
    start_binder(command=[sys.executable, "-m", "multibinder", str(path), "--mode", "0640"])
    assert path.stat().st_mode & 0o777 == 0o640


def test_the_environment_says_where_to_serve(run_dir: Path, start_binder: StartBinder) -> None:
    path = run_dir / "env.sock"
    start_binder(command=[sys.executable, "-m", "multibinder", "serve"], environment={"MULTIBINDER_SOCK": str(path)})
    with Client(path) as client:
        assert client.list() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_stop_ends_the_binder_with_0_and_removes_its_files(binder: Binder, number: signal.Signals) -> None:
    binder.send_signal(number)
    assert binder.wait() == 0
    assert not binder.socket_path.exists()
    assert sorted(path.name for path in binder.socket_path.parent.iterdir()) == ["mb.log", "mb.notify"]
    assert f"event=stopping signal={number.name}" in binder.log()


@pytest.mark.parametrize("number", [signal.SIGUSR2])
def test_a_signal_without_a_use_does_not_end_the_binder(binder: Binder, number: signal.Signals) -> None:
    binder.send_signal(number)
    binder.wait_for_log(f"event=signal-ignored signal={number.name}")
    with Client(binder.socket_path) as client:
        assert client.hello().pid == binder.pid


def test_the_binder_stops_while_clients_are_connected_and_requests_half_sent(binder: Binder) -> None:
    with RawClient(binder.socket_path) as idle, RawClient(binder.socket_path) as half:
        idle.ask(request("hello"))
        half.send(b'{"jsonrpc":')
        assert binder.stop() == 0
        assert idle.at_end()


def test_sockets_that_were_handed_over_outlive_it(binder: Binder) -> None:
    with Client(binder.socket_path) as client:
        [listener] = client.bind([("127.0.0.1", 0)])
    with listener:
        binder.stop()
        assert can_connect(listener.getsockname())


def test_the_port_closes_with_the_last_holder(binder: Binder) -> None:
    with Client(binder.socket_path) as client:
        [listener] = client.bind([("127.0.0.1", 0)])
    address = listener.getsockname()
    listener.close()
    assert can_connect(address)
    binder.stop()
    assert not can_connect(address)


def test_a_client_that_comes_while_no_server_runs_is_served_by_the_next_one(binder: Binder, host: str) -> None:
    def server() -> socket.socket:
        with Client(binder.socket_path) as client:
            return client.bind([(host, 8000)])[0]

    server().close()
    with socket.create_connection((host, 8000)) as client:
        client.sendall(b"are you there?")
        with server() as second:
            connection, peer = second.accept()
        with connection:
            assert peer == client.getsockname()
            assert connection.recv(100) == b"are you there?"


def test_the_binder_raises_its_limit_of_descriptors_to_the_hard_limit(start_binder: StartBinder) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    binder = start_binder(nofile=(64, hard))
    soft_now, hard_now = resource.prlimit(binder.pid, resource.RLIMIT_NOFILE)
    assert soft_now == hard_now == hard


def test_a_hard_limit_that_is_too_low_for_the_listeners_is_logged_at_the_start(start_binder: StartBinder) -> None:
    binder = start_binder("--max-clients", "100", nofile=(64, 300))
    line = binder.wait_for_log("event=limit-lowered")
    assert "max_listeners=136 wanted=16384" in line
    assert "RLIMIT_NOFILE is 300 and 100 clients need room; raise LimitNOFILE=" in line


def test_an_idle_binder_sleeps(binder: Binder) -> None:
    with Client(binder.socket_path) as client, RawClient(binder.socket_path) as other:
        listeners = client.bind([("127.0.0.1", 0)] * 10)
        other.ask(request("hello"))
        before = voluntary_switches(binder.pid)
        threading.Event().wait(3)  # a measurement over time, not a wait for a condition
        assert voluntary_switches(binder.pid) - before <= 1, binder.log()
        for listener in listeners:
            listener.close()


def test_a_binder_that_dropped_its_slow_clients_sleeps(start_binder: StartBinder) -> None:
    binder = start_binder("--request-timeout", "0.2")
    with RawClient(binder.socket_path) as silent, RawClient(binder.socket_path) as half:
        half.send(b"{")
        assert half.reply()["error"]["code"] == -32600
        assert silent.at_end()
        before = voluntary_switches(binder.pid)
        threading.Event().wait(1)  # as above
        assert voluntary_switches(binder.pid) - before <= 1, binder.log()


def test_the_daemon_imports_no_module_that_it_does_not_use() -> None:
    unwanted = ["click", "rich", "jinja2", "daemon", "multibinder_haproxy", "asyncio", "argparse", "subprocess"]
    unwanted += ["random", "pathlib", "dataclasses"]
    script = (
        "import sys, json, multibinder.cli.binder_main; "
        f"print(json.dumps([name for name in {unwanted!r} if name in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=clean_environment()
    )
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["serve"], "Missing option '--socket'"),
        (["serve", "--socket", "/tmp/x", "--mode", "9"], "'9' is no file mode: write it in octal, as in 0660"),
        (["serve", "--socket", "/tmp/x", "--mode", "01777"], "'01777' is no file mode"),
        (["serve", "--socket", "/tmp/x", "--max-clients", "0"], "--max-clients"),
        (["serve", "--socket", "/tmp/x", "--request-timeout", "0"], "--request-timeout"),
        (["serve", "--socket", "/tmp/x", "--log-format", "xml"], "--log-format"),
        (["sevre"], "No such command 'sevre'"),
    ],
)
def test_wrong_usage_is_explained_and_exits_with_2(arguments: list[str], complaint: str) -> None:
    done = multibinder(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_binder_whose_directory_was_removed_still_stops_cleanly(run_dir: Path, start_binder: StartBinder) -> None:
    directory = run_dir / "gone"
    directory.mkdir()
    path = directory / "mb.sock"
    binder = start_binder(command=[sys.executable, "-m", "multibinder", str(path)])
    for entry in directory.iterdir():
        entry.unlink()
    directory.rmdir()
    assert binder.stop() == 0


def test_the_binder_stops_also_when_its_log_is_not_read(run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.bind(str(run_dir / "n"))
        notifications.settimeout(20)
        path = run_dir / "mb.sock"
        process = subprocess.Popen(
            [sys.executable, "-m", "multibinder", "serve", "-v", "--socket", str(path)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=clean_environment({"NOTIFY_SOCKET": str(run_dir / "n")}),
        )
        try:
            notifications.recv(4096)
            assert process.stderr is not None
            process.stderr.close()
            with Client(path) as client:
                for listener in client.bind([("127.0.0.1", 0)]):
                    listener.close()
                assert len(client.list()) == 1
            process.terminate()
            assert process.wait(20) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


def test_the_binder_survives_many_signals_at_once(binder: Binder) -> None:
    for _ in range(500):
        binder.send_signal(signal.SIGHUP)
    with Client(binder.socket_path) as client:
        assert client.hello().pid == binder.pid
    assert binder.stop() == 0


def test_a_client_connected_before_the_stop_does_not_delay_it(binder: Binder) -> None:
    with Client(binder.socket_path) as client:
        client.hello()
        binder.send_signal(signal.SIGTERM)
        wait_until(lambda: binder.process.poll() == 0, "it ended", log=binder.log)


def test_a_supervisor_that_does_not_read_yet_delays_nothing_and_is_notified_later(run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(run_dir / "supervisor"))
        supervisor.settimeout(PATIENCE_S)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            other.connect(supervisor.getsockname())
            with contextlib.suppress(BlockingIOError):
                while True:
                    other.send(b"WATCHDOG=1")
        environment = {"NOTIFY_SOCKET": supervisor.getsockname(), "WATCHDOG_USEC": "200000"}
        with Binder(run_dir, environment=environment) as binder:
            assert serving_pid(binder.socket_path) == binder.pid
            while not supervisor.recv(1024).startswith(b"READY=1"):
                pass
