"""What ``run`` tells the service manager: a socket stands for systemd."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder.launch.run.service import Service
from multibinder.launch.run.tasks import sleep
from tests.run.copy_of_a_program import run
from tests.support.processes import descriptors_unchanged


class Manager:
    """The service manager's end of $NOTIFY_SOCKET."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(f"\0{path[1:]}" if path.startswith("@") else path)

    def heard(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found


@pytest.fixture
def manager(run_dir: Path) -> Iterator[Manager]:
    manager = Manager(str(run_dir / "systemd.sock"))
    yield manager
    manager.socket.close()


def test_ready_reloading_status_and_stopping(manager: Manager) -> None:
    environment = {"NOTIFY_SOCKET": manager.path, "PATH": "/bin"}
    with descriptors_unchanged():
        service = Service(environment)
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        service.ready("1 copy serves")
        service.status("1 copy serves")
        service.reloading("starting\nnow\x1b")
        service.status("waiting")
        service.extend(10)
        service.stopping()
        service.close()
    ready, reloading, status, extended, stopping = manager.heard()
    assert ready == "READY=1\nSTATUS=1 copy serves"
    found = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)\nSTATUS=starting\?now\?", reloading)
    assert found
    assert before <= int(found[1]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert (status, extended, stopping) == ("STATUS=waiting", "EXTEND_TIMEOUT_USEC=15000000", "STOPPING=1")
    assert environment == {"PATH": "/bin"}


def test_an_abstract_address(run_dir: Path) -> None:
    manager = Manager(f"@{run_dir}")
    service = Service({"NOTIFY_SOCKET": manager.path})
    service.ready()
    assert manager.heard() == ["READY=1"]
    service.close()
    manager.socket.close()


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234", "/gone/notify.sock"])
def test_without_a_service_manager_nothing_happens(address: str) -> None:
    with descriptors_unchanged():
        service = Service({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000"})
        service.ready("x")
        service.close()
        service.stopping()


def test_what_the_manager_does_not_read_waits_and_comes_in_its_order(manager: Manager) -> None:
    service = Service({"NOTIFY_SOCKET": manager.path})
    for number in range(30):
        service.status(f"{number}")
    service.ready()

    async def read() -> list[str]:
        found: list[str] = []
        while "READY=1" not in found:
            found += manager.heard()
            await sleep(0.01)
        return found

    found = run(read(), service.send_waiting())
    assert found[-1] == "READY=1"
    numbers = [int(each.removeprefix("STATUS=")) for each in found[:-1]]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 29
    service.close()


def test_a_manager_that_is_started_again_gets_what_waits(run_dir: Path) -> None:
    path = str(run_dir / "systemd.sock")
    service = Service({"NOTIFY_SOCKET": path})
    service.ready()
    manager = Manager(path)

    async def read() -> list[str]:
        while not (found := manager.heard()):
            await sleep(0.01)
        return found

    assert run(read(), service.send_waiting()) == ["READY=1"]
    service.close()
    manager.socket.close()


def test_the_watchdog_is_fed_only_while_it_may_be(manager: Manager) -> None:
    service = Service({"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "30000", "WATCHDOG_PID": str(os.getpid())})
    assert service.watchdog_s == 0.03
    may_feed = True

    async def main() -> tuple[list[str], list[str]]:
        nonlocal may_feed
        fed: list[str] = []
        while len(fed) < 3:
            await sleep(0.01)
            fed += manager.heard()
        may_feed = False
        await sleep(0.05)
        manager.heard()
        await sleep(0.05)
        return fed, manager.heard()

    fed, after = run(main(), service.feed(lambda: may_feed))
    assert set(fed) == {"WATCHDOG=1"}
    assert after == []
    service.close()


@pytest.mark.parametrize(
    ("usec", "pid"), [("30000000", "1"), ("", ""), ("0", ""), ("abc", ""), ("-5", ""), ("30000000", "abc")]
)
def test_a_watchdog_that_is_not_for_this_process_is_none(usec: str, pid: str, manager: Manager) -> None:
    service = Service({"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid})
    assert service.watchdog_s is None
    service.close()
