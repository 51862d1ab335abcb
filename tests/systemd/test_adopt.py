"""A service of systemd is adopted by the shipped binder, which has no rights of its own over other processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import PATIENCE_S, own_host, wait_until
from tests.support.load import Load
from tests.systemd.machine import COMMANDS, Machine
from tests.systemd.support import SOCKET_PATH

UNIT = "plain.service"
#: A server whose two processes have a socket each, and that finishes its connections at SIGTERM.
_SERVER = """
import os, select, signal, socket, sys
host, how = sys.argv[1:]
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
signal.set_wakeup_fd(os.pipe2(os.O_NONBLOCK)[1])

def opened():
    if how == "own":
        return [socket.create_server((host, 8000), reuse_port=True)]
    import multibinder
    with multibinder.Client() as binder:
        held = [each for each in binder.list() if each.address == f"{host}:8000"]
        address = multibinder.Address.parse(f"{host}:8000")
        return binder.bind([multibinder.ListenerSpec(address, shard=each.shard) for each in held], owner="plain")

def serve(socks):
    for each in socks:
        each.setblocking(False)
    while not stopping:
        for sock in select.select(socks, [], [], 0.02)[0]:
            try:
                client, _ = sock.accept()
            except BlockingIOError:
                continue
            client.settimeout(5)
            client.recv(4096)
            client.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: 3\\r\\n\\r\\nok\\n")
            client.close()

child = os.fork() if how == "own" else None
serve(opened())
if child:
    os.waitpid(child, 0)
"""


@pytest.fixture
def host(binder: Machine) -> Iterator[str]:
    host = own_host()
    binder.write("/opt/plain.py", _SERVER)
    yield host
    binder.run("systemctl", "stop", UNIT)
    binder.run("multibinder", "release", "--socket", SOCKET_PATH, "--all-owners", f"{host}:8000")
    binder.must("rm", f"/run/systemd/system/{UNIT}")
    binder.must("systemctl", "daemon-reload")


def test_a_service_is_adopted_by_its_unit_and_replaced_without_losing_a_client(binder: Machine, host: str) -> None:
    def unit(how: str) -> None:
        service = f"[Service]\nEnvironment=MULTIBINDER_SOCK={SOCKET_PATH}\n"
        service += f"ExecStart={COMMANDS}/python /opt/plain.py {host} {how}\n"
        binder.write(f"/run/systemd/system/{UNIT}", service)
        binder.must("systemctl", "daemon-reload")

    unit("own")
    binder.must("systemctl", "start", UNIT)
    with Load([(host, 8000)], rate=300, timeout_s=PATIENCE_S) as load:
        wait_until(lambda: load.snapshot().total.ok > 0, "the service serves", log=binder.journal)
        load.mark("adoption")
        shown = binder.must("multibinder", "adopt", "--dry-run", "--socket", SOCKET_PATH, "--unit", UNIT)
        assert f"{host}:8000" in shown
        said = binder.must("multibinder", "adopt", "--socket", SOCKET_PATH, "--owner", "plain", "--unit", UNIT)
        assert f"{host}:8000 (2 sockets): adopted from python" in said
        unit("binder")
        binder.must("systemctl", "restart", UNIT)
        binder.must("systemctl", "restart", "multibinder.service")
        binder.must("systemctl", "restart", UNIT)
        result = load.stop()
    lost = {phase.name: phase.failed for phase in result.phases if phase.name != "start"}
    assert lost == {"adoption": 0}, result.table() + binder.journal()
