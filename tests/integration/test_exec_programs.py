"""Real programs that ``multibinder exec`` starts in their own style, and restarts."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import Client
from tests.support import PATIENCE_S, PROGRAM, Binder, can_connect, clean_environment, require, wait_until


@contextlib.contextmanager
def started(binder: Binder, log: Path, *arguments: str, end: signal.Signals = signal.SIGQUIT) -> Iterator[int]:
    """Run a program by ``exec`` until the block ends, and give its PID."""
    command = [*PROGRAM, "exec", "--socket", str(binder.socket_path), *arguments]
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, env=clean_environment(), stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield process.pid
    finally:
        process.send_signal(end)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail(f"it does not end\n{log.read_text()}")


def until_said(log: Path, text: str, times: int) -> None:
    def said() -> bool:
        return log.exists() and log.read_text().count(text) >= times

    wait_until(said, f"it says {text!r}", log=lambda: "".join(each.read_text() for each in log.parent.glob("*o[gu]*")))


def answer(sock: socket.socket) -> bytes:
    sock.settimeout(PATIENCE_S)
    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
    return b"".join(iter(lambda: sock.recv(4096), b""))


@pytest.fixture
def nginx(run_dir: Path, host: str) -> str:
    """The path of a configuration of nginx with a listener of each family."""
    require("nginx", shutil.which("nginx"), "nginx is not installed")
    file = run_dir / "nginx.conf"
    file.write_text(
        f"daemon off; pid {run_dir}/nginx.pid; error_log stderr notice; user root;\n"
        "events { worker_connections 64; }\n"
        f"http {{ access_log off; client_body_temp_path {run_dir}/b; proxy_temp_path {run_dir}/p;\n"
        f"fastcgi_temp_path {run_dir}/f; uwsgi_temp_path {run_dir}/u; scgi_temp_path {run_dir}/s;\n"
        f"server {{ listen {host}:8000; listen unix:{run_dir}/web.sock; return 200 hello; }} }}\n"
    )
    return str(file)


def test_nginx_takes_its_listeners_and_leaves_them_to_the_next_one(
    binder: Binder, host: str, run_dir: Path, nginx: str
) -> None:
    log = run_dir / "nginx.log"
    arguments = ["-v", "-b", f"{host}:8000", "-b", f"unix@{run_dir}/web.sock", "--", "nginx", "-c", nginx]
    for times in (1, 2):
        with started(binder, log, *arguments):
            until_said(log, "start worker processes", times)
            with socket.create_connection((host, 8000), timeout=PATIENCE_S) as client:
                assert b"hello" in answer(client)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"{run_dir}/web.sock")
                assert b"hello" in answer(client)
    assert can_connect((host, 8000))
    said = log.read_text()
    assert said.count('using inherited sockets from "3;4;"') == 2
    assert "style nginx: nginx is known to take no other" in said


def test_php_fpm_takes_its_listeners_of_each_family(binder: Binder, host: str, run_dir: Path) -> None:
    program = next(iter(sorted(Path("/usr/sbin").glob("php-fpm*"))), None)
    require("php-fpm", program, "PHP-FPM is not installed")
    config, log = run_dir / "fpm.conf", run_dir / "fpm.log"
    pools = {"a": f"{host}:9000", "b": f"{run_dir}/php.sock", "c": "[::1]:9123"}
    try:
        with socket.create_server(("::1", 9123), family=socket.AF_INET6):
            pass
    except OSError:
        del pools["c"]
    config.write_text(
        f"[global]\nerror_log = {log}\ndaemonize = no\nlog_level = notice\n"
        + "".join(
            f"[{name}]\nuser = root\ngroup = root\nlisten = {listen}\npm = static\npm.max_children = 1\n"
            for name, listen in pools.items()
        )
    )
    binds = [word for listen in pools.values() for word in ("-b", listen)]
    for times in (1, 2):
        with started(binder, run_dir / "out", *binds, "--", str(program), "-F", "-R", "-y", str(config)):
            until_said(log, "ready to handle connections", times)
            with Client(binder.socket_path) as client:
                wait_until(lambda: all(each.holders for each in client.status().listeners), "it holds each listener")
    said = log.read_text()
    for number, listen in enumerate(pools.values(), 3):
        assert said.count(f'using inherited socket fd={number}, "{listen.replace("[::1]", "::1")}"') == 2
    assert "unable to bind" not in said
