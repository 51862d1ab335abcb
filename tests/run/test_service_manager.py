"""``run`` is the main process of its service: it answers for READY, RELOADING, STATUS and the watchdog."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.run.support import Service
from tests.run.test_service import Manager
from tests.support import Binder
from tests.support.waiting import wait_until

SERVER = Path(__file__).with_name("feeding_server.py")


class FeedingService(Service):
    @property
    def _command(self) -> list[str]:
        return [sys.executable, "-I", str(SERVER), str(self.behaviour_file)]


class Listening(Manager):
    """A service manager that remembers what it heard."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.all: list[str] = []
        self._new: list[str] = []

    def has_heard(self, pattern: str) -> re.Match[str] | None:
        """Return the first match in what was not found before."""
        messages = self.heard()
        self.all += messages
        self._new += messages
        for number, message in enumerate(self._new):
            if found := re.search(pattern, message):
                del self._new[: number + 1]
                return found
        return None

    def wait_for(self, pattern: str, service: Service) -> re.Match[str]:
        return wait_until(lambda: self.has_heard(pattern), f"the manager hears {pattern!r}", log=service.log)


@pytest.fixture
def manager(run_dir: Path) -> Iterator[Listening]:
    manager = Listening(str(run_dir / "systemd.sock"))
    yield manager
    manager.socket.close()


@pytest.fixture
def service(run_dir: Path, host: str, binder: Binder) -> Iterator[FeedingService]:
    service = FeedingService(run_dir, host, binder.socket_path, "--stable-for", "0.1")
    with service:
        yield service


def test_start_reload_and_stop_are_told_and_what_a_copy_may_not_say_is_not(
    service: FeedingService, manager: Listening
) -> None:
    service.start(environment={"NOTIFY_SOCKET": manager.path})
    manager.wait_for("^READY=1", service)
    service.until_serving()
    report = service.reload()
    assert report.ok, report
    found = manager.wait_for(r"^RELOADING=1\nMONOTONIC_USEC=\d+", service)
    assert found
    manager.wait_for("^READY=1", service)
    assert service.stop() == 0
    manager.wait_for("^STOPPING=1", service)
    everything = "\n".join(manager.all)
    assert "MAINPID" not in everything
    assert "FDSTORE" not in everything
    assert "WATCHDOG" not in everything, "it has none"


def test_a_copy_that_stops_to_feed_the_watchdog_is_replaced_and_the_service_lives(
    service: FeedingService, manager: Listening
) -> None:
    service.start(environment={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "1000000"})
    manager.wait_for("STATUS=.*1 s", service)
    [frozen] = service.until_serving().copies
    service.behave("freezes")
    service.wait_for_log(f"copy {frozen.pid} has stopped to feed the watchdog")
    service.behave("good")
    wait_until(lambda: frozen.pid not in service.pids(), "the frozen copy is ended", log=service.log)
    service.until_serving()
    assert service.process.poll() is None
    manager.heard()
    manager.wait_for("^WATCHDOG=1", service)


def test_without_a_service_manager_a_copy_gets_its_socket_all_the_same(service: FeedingService) -> None:
    service.start()
    assert service.until_serving().copies[0].ready_by == "it sent READY=1"
