"""The pages about other ways to keep a port: their commands and files are carried out, as they stand there.

It happens in a booted systemd, under load. A file stands in a fenced block after a line that ends with its path in
backquotes; commands stand in blocks of sh. Only the address of the example is replaced.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest

from tests.haproxy.support import config
from tests.support import PATIENCE_S, own_host, require, wait_until
from tests.support.installation import CHECKOUT
from tests.support.load import Load, Result
from tests.systemd.machine import HOME, Machine
from tests.systemd.support import SOCKET_PATH

PAGES = CHECKOUT / "docs" / "how-to"
_BLOCK = re.compile(r"(?:^`(?P<path>/[^`]+)`:\n\n)?```(?P<sort>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_EXAMPLE = "192.0.2.10"
#: A server that takes its sockets from systemd, or from start_server, and finishes its connections at SIGTERM.
_SERVER = """
import os, selectors, signal, socket
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
if "SERVER_STARTER_PORT" in os.environ:
    numbers = [int(each.rpartition("=")[2]) for each in os.environ["SERVER_STARTER_PORT"].split(";")]
else:
    numbers = range(3, 3 + int(os.environ["LISTEN_FDS"]))
waiting = selectors.DefaultSelector()
for number in numbers:
    sock = socket.socket(fileno=number)
    sock.setblocking(False)
    waiting.register(sock, selectors.EVENT_READ)
while not stopping:
    for key, _ in waiting.select(0.05):
        try:
            client, _ = key.fileobj.accept()
        except OSError:
            continue
        with client:
            client.settimeout(5)
            try:
                client.recv(4096)
                client.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: 3\\r\\n\\r\\nok\\n")
            except OSError:
                pass
"""


class Page:
    """A page, whose blocks are carried out in their order."""

    def __init__(self, machine: Machine, name: str, host: str) -> None:
        self._machine = machine
        text = (PAGES / name).read_text().replace(_EXAMPLE, host)
        self._blocks = [(found["path"], found["sort"], found["text"]) for found in _BLOCK.finditer(text)]
        self._at = 0

    def carry_out(self, number: int) -> str:
        """Write the files and run the commands of the next blocks. Return what the commands printed."""
        said = ""
        for path, sort, text in self._blocks[self._at : self._at + number]:
            self._at += 1
            if path:
                self._machine.write(path, text)
            elif sort == "sh":
                for line in text.splitlines():
                    said += self._machine.must("sh", "-c", line)
        return said

    @property
    def left(self) -> int:
        return len(self._blocks) - self._at


@pytest.fixture
def host(binder: Machine) -> Iterator[str]:
    assert HOME == "/opt/multibinder", "the pages have this path"
    host = own_host()
    yield host
    for unit in ("web.socket", "web.service", "app.service", "multibinder-run@app", "haproxy.service"):
        binder.run("systemctl", "disable", "--now", unit)
    for unit in ("web", "app"):
        binder.run("sh", "-c", f"rm -rf /etc/systemd/system/{unit}.*")
    binder.run("multibinder", "systemd", "takeover", "haproxy.service", "--undo", "--force")
    binder.run("systemctl", "daemon-reload")
    for port in (80, 8080):
        binder.run("multibinder", "release", "--socket", SOCKET_PATH, "--all-owners", f"{host}:{port}")


def serves(load: Load) -> bool:
    return load.snapshot().total.ok > 0


def assert_none_refused(result: Result, machine: Machine) -> None:
    phases = [phase for phase in result.phases if phase.name != "start"]
    assert sum(phase.tried for phase in phases) > 0
    assert [(phase.name, phase.failed) for phase in phases if phase.failed] == [], result.table() + machine.journal()


def test_from_haproxys_own_reload(binder: Machine, host: str) -> None:
    binder.write("/etc/haproxy/haproxy.cfg", config(f"{host}:80"))
    binder.must("systemctl", "start", "haproxy.service")
    page = Page(binder, "from-haproxy-reload.md", host)
    with Load([(host, 80)], rate=200, timeout_s=PATIENCE_S) as load:
        wait_until(lambda: serves(load), "plain HAProxy serves", log=binder.journal)
        load.mark("takeover")
        assert "would be written" in page.carry_out(2)
        load.mark("ends")
        starts = binder.show("haproxy.service", "NRestarts")
        page.carry_out(1)

        def is_back() -> bool:
            shown = (binder.show("haproxy.service", "NRestarts"), binder.show("haproxy.service", "ActiveState"))
            return shown[0] != starts and shown[1] == "active"

        wait_until(is_back, "systemd has started it again after SIGKILL", log=binder.journal)
        load.mark("undo")
        page.carry_out(1)
        result = load.stop()
    assert page.left == 0
    for phase in result.phases:
        # A process that is killed, or restarted, loses what it had accepted.
        assert phase.name == "start" or phase.failed == (phase.reset if phase.name == "ends" else 0), result.table()


def test_from_systemd_socket_activation(binder: Machine, host: str) -> None:
    binder.write("/opt/web.py", _SERVER)
    page = Page(binder, "from-systemd-sockets.md", host)
    page.carry_out(2)
    binder.must("systemctl", "daemon-reload")
    binder.must("systemctl", "enable", "--now", "web.socket")
    binder.must("systemctl", "start", "web.service")
    with Load([(host, 8080)], rate=200, timeout_s=PATIENCE_S) as load:
        wait_until(lambda: serves(load), "the service serves", log=binder.journal)
        load.mark("move")
        said = page.carry_out(3)
        assert f"{host}:8080" in said
        load.mark("a restart")
        binder.must("systemctl", "restart", "web.service")
        result = load.stop()
    assert_none_refused(result, binder)
    page.carry_out(1)
    assert page.left == 0
    assert binder.show("web.socket", "ActiveState") == "active"
    assert f"{host}:8080" not in binder.must("multibinder", "list", "--socket", SOCKET_PATH)


def test_from_start_server(binder: Machine, host: str) -> None:
    require("start_server", shutil.which("start_server"), "there is no start_server (libserver-starter-perl)")
    binder.write("/opt/app.py", _SERVER)
    page = Page(binder, "from-start-server.md", host)
    page.carry_out(1)
    binder.must("systemctl", "daemon-reload")
    binder.must("systemctl", "start", "app.service")
    with Load([(host, 8080)], rate=200, timeout_s=PATIENCE_S) as load:
        wait_until(lambda: serves(load), "the service serves", log=binder.journal)
        load.mark("move")
        said = page.carry_out(3)
        assert "app" in said
        load.mark("SIGKILL of run")
        dead = binder.kill("multibinder-run@app.service")
        wait_until(
            lambda: binder.main_pid("multibinder-run@app.service") not in (0, dead),
            "systemd has started it again",
            log=binder.journal,
        )
        result = load.stop()
    assert page.left == 0
    assert_none_refused(result, binder)
