"""An upgrade in place from the version before other kinds of sockets, and back, keeps what that version knows."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from multibinder import Client, ListenerSpec, MultibinderError, Options, TcpAddress
from multibinder.wire.addresses import Address
from tests.support import can_connect, serving_pid
from tests.support.binder import Binder
from tests.support.installation import CHECKOUT

#: The last commit whose binder holds TCP listeners only, and knows neither shards nor namespaces.
BEFORE = "d728390"

StartBinder = Callable[..., Binder]


class Versions:
    """A directory for PYTHONPATH that has the code of one version at a time."""

    def __init__(self, directory: Path) -> None:
        old = directory / "old"
        old.mkdir()
        archive = subprocess.run(
            ["git", "-C", str(CHECKOUT), "archive", BEFORE, "multibinder"], capture_output=True, check=False
        )
        if archive.returncode:
            pytest.skip(f"the history of this checkout has no commit {BEFORE}")
        subprocess.run(["tar", "-x", "-C", str(old)], input=archive.stdout, check=True)
        self._trees = {"old": old, "new": CHECKOUT}
        self._link = directory / "code"
        path = [str(self._link), *(entry for entry in sys.path if entry.endswith("-packages"))]
        self.environment = {"PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}
        # The interpreter behind the virtual environment: there, an installed multibinder would go first.
        self.program = (os.path.realpath(sys.executable), "-P", "-m", "multibinder")

    def install(self, which: str) -> None:
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(self._trees[which])


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path)


def upgrade(binder: Binder) -> None:
    with Client(binder.socket_path) as client:
        client.upgrade()
    serving_pid(binder.socket_path)


def cookies(binder: Binder) -> dict[str, int]:
    with Client(binder.socket_path) as client:
        return {each.address: each.cookie for each in client.list()}


def is_new(binder: Binder) -> bool:
    """Return whether the version that runs knows other kinds than TCP."""
    try:
        with Client(binder.socket_path) as client:
            client.check([ListenerSpec(Address.parse("udp@127.0.0.1:0"))], owner="probe")
    except MultibinderError:
        return False
    return True


def test_an_upgrade_from_the_version_before_and_back_keeps_tcp_and_refuses_to_lose_the_rest(
    start_binder: StartBinder, versions: Versions, host: str
) -> None:
    versions.install("old")
    binder = start_binder(program=versions.program, environment=versions.environment)
    tcp = ListenerSpec(TcpAddress.of(host, 8000), Options(backlog=77, name="web"))
    udp = ListenerSpec(Address.parse(f"udp@{host}:8001"))
    with Client(binder.socket_path) as client:
        client.bind([tcp], owner="server")[0].close()
    before = cookies(binder)
    assert not is_new(binder)

    versions.install("new")
    upgrade(binder)
    assert (is_new(binder), cookies(binder)) == (True, before)
    with Client(binder.socket_path) as client:
        [status] = client.list()
        assert (status.owners, status.name, status.backlog) == (["server"], "web", 77)
        client.bind([udp], owner="server")[0].close()
        # The owner is known to have set the backlog, although the version before has not recorded it.
        client.bind([ListenerSpec(tcp.address, Options(name="web"))], owner="server")[0].close()
        assert client.list()[0].backlog_requested is None
        client.bind([tcp], owner="server")[0].close()

    versions.install("old")
    with pytest.raises(
        MultibinderError, match=rf"does not know udp, and would lose 1 of the listeners: udp@{host}:8001"
    ):
        upgrade(binder)
    assert is_new(binder)
    with Client(binder.socket_path) as client:
        client.release([udp], owner="server")
    upgrade(binder)
    assert (is_new(binder), cookies(binder)) == (False, before)
    assert can_connect((host, 8000))
    with Client(binder.socket_path) as client:
        [status] = client.list()
        assert (status.owners, status.name, status.backlog) == (["server"], "web", 77)

    versions.install("new")
    upgrade(binder)
    assert (is_new(binder), cookies(binder)) == (True, before)


def test_a_new_binder_tells_its_control_socket_from_unix_listeners_at_an_upgrade(
    start_binder: StartBinder, versions: Versions, run_dir: Path
) -> None:
    versions.install("new")
    binder = start_binder(program=versions.program, environment=versions.environment)
    path = run_dir / "a.sock"
    addresses = [f"unix@{path}", f"unixseq@{run_dir}/b.sock", f"uxdg@{run_dir}/c.sock"]
    specs = [ListenerSpec(Address.parse(address)) for address in addresses]
    with Client(binder.socket_path) as client:
        for listener in client.bind(specs, owner="server"):
            listener.close()
    before = cookies(binder)
    upgrade(binder)
    assert cookies(binder) == before
    with socket.socket(socket.AF_UNIX) as client_socket:
        client_socket.connect(str(path))
    versions.install("old")
    with pytest.raises(MultibinderError, match="does not know unix, and would lose 3 of the listeners"):
        upgrade(binder)
