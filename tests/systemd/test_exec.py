"""A service that ``multibinder exec`` starts: systemd sees the program and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support import PATIENCE_S, own_host
from tests.support.load import Load
from tests.systemd.machine import COMMANDS, Machine
from tests.systemd.support import SOCKET_PATH

UNIT, SOCKET_UNIT = "app.service", "app.socket"
#: It serves one client after the other on descriptor 3, and ends between two of them.
_PROGRAM = """
import os, select, signal, socket
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
listener = socket.socket(fileno=3)
assert os.environ["LISTEN_FDS"] == "1" and os.environ["LISTEN_PID"] == str(os.getpid()), os.environ
assert listener.getsockname()[1] == 80, listener
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
    manager.sendto(b"READY=1\\nSTATUS=It serves.", os.environ["NOTIFY_SOCKET"])
while signal.SIGTERM not in signal.sigpending():
    if select.select([listener], [], [], 0.02)[0]:
        client, _ = listener.accept()
        client.recv(1000)
        client.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\nok")
        client.close()
"""
#: The unit has a socket of its own too, which is for no program that exec starts.
_SERVICE = f"""
[Service]
Type=notify
NotifyAccess=main
Environment=MULTIBINDER_SOCK={SOCKET_PATH}
ExecStart={COMMANDS}/multibinder exec -b HOST:80,backlog=2000000 -- /usr/bin/python3 -I /opt/app.py
"""
_SOCKET = """
[Socket]
ListenStream=HOST:81
"""


@pytest.fixture
def address(binder: Machine) -> Iterator[tuple[str, int]]:
    host = own_host()
    binder.write("/opt/app.py", _PROGRAM)
    binder.write(f"/run/systemd/system/{UNIT}", _SERVICE.replace("HOST", host))
    binder.write(f"/run/systemd/system/{SOCKET_UNIT}", _SOCKET.replace("HOST", host))
    binder.must("systemctl", "daemon-reload")
    yield host, 80
    binder.run("systemctl", "stop", UNIT, SOCKET_UNIT)
    binder.run("multibinder", "release", "--socket", SOCKET_PATH, "--owner", "exec@app.py", f"{host}:80")
    binder.must("rm", f"/run/systemd/system/{UNIT}", f"/run/systemd/system/{SOCKET_UNIT}")
    binder.must("systemctl", "daemon-reload")


def test_the_program_is_the_main_process_and_a_restart_refuses_no_client(
    binder: Machine, address: tuple[str, int]
) -> None:
    cursor = binder.cursor()
    binder.must("systemctl", "start", SOCKET_UNIT)
    binder.must("systemctl", "start", UNIT)
    assert binder.show(UNIT, "StatusText") == "It serves."
    pid = binder.main_pid(UNIT)
    assert binder.must("cat", f"/proc/{pid}/cmdline").split("\0")[:3] == ["/usr/bin/python3", "-I", "/opt/app.py"]
    assert binder.must("cat", f"/proc/{pid}/task/{pid}/children") == ""
    with Load([address], rate=200, timeout_s=PATIENCE_S) as load:
        for _ in range(3):
            binder.must("systemctl", "restart", UNIT)
        result = load.stop()
    assert result.total.tried > 10
    assert result.total.failed == 0, result.table()
    assert binder.main_pid(UNIT) != pid
    said = binder.must("journalctl", "-o", "json", "-u", UNIT, "--after-cursor", cursor, "-p", "warning")
    warnings = {json.loads(line)["MESSAGE"] for line in said.splitlines()}
    assert len(warnings) == 1
    assert "a backlog of 2000000 was asked for" in warnings.pop()
    binder.must("systemctl", "stop", UNIT)
    assert binder.show(UNIT, "Result") == "success"


def test_a_command_that_is_not_there_fails_the_unit_with_its_exit_code(
    binder: Machine, address: tuple[str, int]
) -> None:
    binder.write(
        f"/run/systemd/system/{UNIT}", _SERVICE.replace("HOST", address[0]).replace("python3", "no-such-program")
    )
    binder.must("systemctl", "daemon-reload")
    assert binder.run("systemctl", "start", UNIT).returncode != 0
    assert binder.show(UNIT, "ExecMainStatus") == "127"
    assert "command not found: /usr/bin/no-such-program" in binder.journal("-u", UNIT)
