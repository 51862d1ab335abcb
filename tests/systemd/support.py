"""Instances, units and assertions that the tests of the services share."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from tests.haproxy.support import assert_none_lost, bind_tcp, config
from tests.support import own_host, wait_until
from tests.support.load import Result
from tests.systemd.machine import Machine

BINDER = "multibinder.service"
EXPORTER = "multibinder-exporter.service"
CONTROL = "multibinder.socket"
SOCKET_PATH = "/run/multibinder/control.sock"
PORT, EXTRA_PORT = 80, 8080


class Instance:
    """An instance multibinder-haproxy@NAME on a loopback host that no other test uses."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.name = name
        self.unit = f"multibinder-haproxy@{name}.service"
        self.host = own_host()
        self.configure(PORT)

    @property
    def address(self) -> tuple[str, int]:
        return self.host, PORT

    def configure(self, *ports: int) -> None:
        self.write(config(*(bind_tcp((self.host, port)) for port in ports)))
        self.configured = {(self.host, port) for port in ports}

    def write(self, template: str) -> None:
        self.machine.write(f"/etc/haproxy/{self.name}.cfg.j2", template)

    def start(self) -> Instance:
        self.machine.must("systemctl", "start", self.unit)
        # The summary and the records agree with HAProxy a moment after its READY=1.
        wait_until(self.is_settled, f"the start of {self.unit} is settled", log=self.machine.journal)
        return self

    def is_settled(self) -> bool:
        loaded = self.machine.run("cat", f"/run/multibinder-haproxy/{self.name}/loaded.json").stdout
        return bool(loaded) and bool(json.loads(loaded)["settled"])

    def life(self) -> tuple[int, str]:
        """Return a value that changes when systemd starts the instance again."""
        return self.machine.main_pid(self.unit), self.machine.show(self.unit, "NRestarts")

    def workers(self) -> list[int]:
        status = json.loads(self.machine.run("multibinder-haproxy", "status", "--json", self.name).stdout)
        workers: list[int] = status["workers"]
        return workers


def listed(machine: Machine) -> set[tuple[str, int]]:
    """Return the addresses of TCP that ``multibinder list`` reports."""
    listeners = json.loads(machine.must("multibinder", "list", "--json", "--socket", SOCKET_PATH))
    pairs = [each["address"].rsplit(":", 1) for each in listeners if "@" not in each["address"]]
    return {(host, int(port)) for host, port in pairs}


def restarted(machine: Machine, dead: int) -> bool:
    return machine.main_pid(BINDER) not in (0, dead) and machine.show(BINDER, "ActiveState") == "active"


def assert_no_client_noticed(result: Result) -> None:
    assert result.total.tried > 100
    assert_none_lost(result)


@contextlib.contextmanager
def drop_in(machine: Machine, unit: str, text: str) -> Iterator[None]:
    """Install a drop-in for later starts of the unit, and remove it after the block. Running services go on."""
    path = f"/run/systemd/system/{unit}.d/test.conf"
    machine.write(path, text)
    machine.must("systemctl", "daemon-reload")
    try:
        yield
    finally:
        machine.must("rm", path)
        machine.must("systemctl", "daemon-reload")


def example(machine: Machine, unit: str, name: str) -> str:
    """Return the text of a drop-in that we ship."""
    return machine.path(f"{machine.site_packages()}/multibinder/systemd_units/examples/{unit}.d/{name}").read_text()
