"""A server is found by any of its processes, and ends without harm to the sockets that it shares."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from multibinder_haproxy.master import Master

from multibinder.kernel.process import children_of, is_alive
from multibinder.launch.errors import LaunchError
from multibinder.launch.former import Former, end, formers_of
from tests.haproxy.versions import HAPROXY
from tests.support import PATIENCE_S, clean_environment, require, wait_until

NGINX = os.environ.get("NGINX_PROGRAM", "/usr/sbin/nginx")


_PATIENT = """
defaults
    mode tcp
    timeout client 60s
    timeout connect 5s
    timeout server 60s
frontend patient
    bind {host}:8000
    tcp-request inspect-delay 60s
    tcp-request content accept if {{ req.len gt 100000 }}
"""


@contextlib.contextmanager
def server(*command: str, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a master in a session of its own, and kill all of it at the end."""
    with subprocess.Popen(command, cwd=cwd, env=clean_environment(), start_new_session=True) as process:
        try:
            wait_until(lambda: children_of(process.pid), f"{command[0]} has a worker")
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
        client.connect(str(path))
        return True
    return False


def test_haproxy_is_its_master_and_finishes_its_connections(run_dir: Path, host: str) -> None:
    require("haproxy", shutil.which(HAPROXY), f"there is no {HAPROXY}")
    file = run_dir / "plain.cfg"
    # It keeps a client for as long as that sends nothing: an idle one would be closed at once.
    file.write_text(_PATIENT.format(host=host))
    cli = run_dir / "master.sock"
    with server(HAPROXY, "-Ws", "-S", str(cli), "-f", str(file), cwd=run_dir) as process:
        [worker] = children_of(process.pid)
        # In the first moments after its start, HAProxy takes no signal.
        wait_until(lambda: answers(cli, worker), "its master and its worker answer")
        [former] = formers_of([worker, process.pid])
        assert (former.pid, former.program) == (process.pid, "haproxy")
        with wait_until(lambda: connected(host), "it serves") as client:
            wait_until(lambda: has_accepted(host), "HAProxy has accepted it, and not only the kernel")
            assert not end(former, 0.3)  # this client is not finished
            client.close()
        assert process.wait(PATIENCE_S) == 0


def answers(cli: Path, worker: int) -> bool:
    with contextlib.suppress(LaunchError, OSError):
        return Master(str(cli)).answers(worker)
    return False


def has_accepted(host: str) -> bool:
    """Return whether a connection to the server belongs to a process (proc(5), /proc/net/tcp: it has an inode)."""
    address = f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{8000:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1] == address and row[3] == "01" and row[9] != "0" for row in rows)


def connected(host: str) -> socket.socket | None:
    with contextlib.suppress(OSError):
        return socket.create_connection((host, 8000), PATIENCE_S)
    return None


def test_nginx_leaves_its_path_and_its_pidfile(run_dir: Path) -> None:
    if not os.path.exists(NGINX):
        pytest.skip(f"there is no {NGINX}")
    path = run_dir / "n.sock"
    (run_dir / "n.conf").write_text(
        f"daemon off; pid {run_dir}/n.pid; error_log stderr;\nevents {{}}\n"
        f"http {{ access_log off; server {{ listen unix:{path}; return 200 ok; }} }}\n"
    )
    with server(NGINX, "-p", str(run_dir), "-c", str(run_dir / "n.conf"), cwd=run_dir) as process:
        wait_until(lambda: accepts(path), "it serves")
        [former] = formers_of(children_of(process.pid))
        assert former.pid == process.pid
        assert end(former, PATIENCE_S)
        process.wait(PATIENCE_S)
    assert path.exists()
    assert (run_dir / "n.pid").exists()


def test_a_supervisor_in_the_same_language_is_not_the_server() -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    with subprocess.Popen([sys.executable, "-c", program]) as supervisor:
        [server] = wait_until(lambda: children_of(supervisor.pid), "the server is started")
        [former] = formers_of([server])
        assert former.pid == server
        assert [each.pid for each in formers_of([server, supervisor.pid])] == [supervisor.pid]
        assert end(former, PATIENCE_S)


def test_a_process_that_has_the_pid_of_a_former_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        assert end(Former(other.pid, 1, "sleep"), 1)
        assert is_alive(other.pid)
        [former] = formers_of([other.pid])
        assert end(former, PATIENCE_S)
    assert formers_of([other.pid]) == []


def test_systemd_is_no_server_that_could_be_ended() -> None:
    assert formers_of([1]) == []
