"""A server of multibinder.asyncio under systemd, with Type=notify."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import PATIENCE_S, own_host, wait_until
from tests.support.load import Load
from tests.systemd.machine import COMMANDS, Machine
from tests.systemd.support import SOCKET_PATH

EXAMPLE = Path(__file__).parents[2] / "examples" / "http_server.py"
UNIT = "hello.service"
PORT = 8000
#: ExecReload= starts a copy beside the main process.
_SERVICE = f"""
[Service]
Type=notify
NotifyAccess=all
Environment=MULTIBINDER_SOCK={SOCKET_PATH}
ExecStart={COMMANDS}/python /opt/http_server.py --host HOST --port {PORT}
ExecReload=/bin/sh -c "{COMMANDS}/python /opt/http_server.py --host HOST --port {PORT} &"
"""


@pytest.fixture
def address(binder: Machine) -> Iterator[tuple[str, int]]:
    host = own_host()
    binder.write("/opt/http_server.py", EXAMPLE.read_text())
    binder.write(f"/run/systemd/system/{UNIT}", _SERVICE.replace("HOST", host))
    binder.must("systemctl", "daemon-reload")
    yield host, PORT
    binder.run("systemctl", "stop", UNIT)
    binder.run("multibinder", "release", "--socket", SOCKET_PATH, "--owner", "http", f"{host}:{PORT}")
    binder.must("rm", f"/run/systemd/system/{UNIT}")
    binder.must("systemctl", "daemon-reload")


def test_a_service_is_active_when_it_accepts_and_a_copy_beside_it_becomes_its_main_process(
    binder: Machine, address: tuple[str, int]
) -> None:
    def is_main(old: int) -> Callable[[], int | None]:
        return lambda: new if (new := binder.main_pid(UNIT)) not in (0, old) else None

    binder.must("systemctl", "start", UNIT)
    first = binder.main_pid(UNIT)
    with Load([address], rate=100, timeout_s=PATIENCE_S) as load:
        binder.must("systemctl", "reload", UNIT)
        second = wait_until(is_main(first), "the copy is the main process", log=binder.journal)
        binder.must("kill", "-TERM", str(first))
        wait_until(lambda: not binder.path(f"/proc/{first}").exists(), "the old one has ended", log=binder.journal)
        assert binder.show(UNIT, "ActiveState") == "active"
        assert binder.main_pid(UNIT) == second
        binder.must("systemctl", "restart", UNIT)
        result = load.stop()
    assert result.total.tried > 10
    assert result.total.failed == 0, result.table()
    binder.must("systemctl", "stop", UNIT)
    assert binder.show(UNIT, "Result") == "success"
