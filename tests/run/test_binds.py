"""The listeners of an instance: new ones, dropped ones, ports that are given up, and no binder at all."""

from __future__ import annotations

import socket
from pathlib import Path

from multibinder import Client
from tests.run.conftest import Serve
from tests.run.support import Service
from tests.support import Binder, can_connect
from tests.support.waiting import wait_until


def _addresses(binder: Binder) -> list[str]:
    with Client(binder.socket_path) as client:
        return sorted(listener.address for listener in client.list())


def test_a_reload_opens_new_binds_and_closes_dropped_ones(make_service: Serve, binder: Binder) -> None:
    service = make_service()
    first, second, third = (f"{service.host}:{port}" for port in (8000, 8001, 8002))
    service.binds = [first, second]
    service.use_config()
    service.start()
    service.until_serving()
    service.binds = [first, third]
    service.use_config()
    report = service.reload()
    assert (report.added, report.kept, report.dropped) == ([third], [first], [second])
    assert _addresses(binder) == [first, third]
    assert not can_connect((service.host, 8001))


def test_a_reload_that_fails_leaves_the_binds_as_they_were(make_service: Serve, binder: Binder) -> None:
    service = make_service()
    first, second = (f"{service.host}:{port}" for port in (8000, 8001))
    service.use_config()
    service.start()
    service.until_serving()
    service.binds = [first, second]
    service.use_config()
    service.behave("exits")
    report = service.reload()
    assert not report.ok
    assert (report.added, report.dropped) == ([], [])
    assert _addresses(binder) == [first]
    assert not can_connect((service.host, 8001))


def test_a_bind_that_another_process_has_is_refused_and_the_old_copy_serves(make_service: Serve) -> None:
    service = make_service()
    service.use_config()
    service.start()
    service.until_serving()
    old = service.pids()
    with socket.create_server((service.host, 8001)):
        service.binds = [*service.binds, f"{service.host}:8001"]
        service.use_config()
        report = service.reload()
    assert not report.ok
    assert "8001" in report.message
    assert service.pids() == old
    assert service.get()


def test_a_reload_whose_dropped_bind_could_not_be_released_is_made_up_by_the_next(
    make_service: Serve, binder: Binder
) -> None:
    service = make_service()
    first, second = (f"{service.host}:{port}" for port in (8000, 8001))
    service.binds = [first, second]
    service.use_config()
    service.start()
    service.until_serving()
    service.binds = [first]
    service.use_config()
    binder.suspend()
    report = service.reload()
    binder.resume()
    assert report.ok
    assert any("could not be released" in each for each in report.warnings)
    assert service.reload().ok
    assert _addresses(binder) == [first]


def test_the_ports_of_a_command_that_cannot_be_started_are_closed_after_a_time_and_come_back(
    make_service: Serve, binder: Binder
) -> None:
    service = make_service("--give-up-after", "0.5")
    service.behave("exits")
    service.start()
    service.wait_for_log("no copy could be started for 0.5 s")
    status = service.status()
    assert status is not None
    assert status.gave_up
    wait_until(lambda: not can_connect(service.address), "the port is closed", log=service.log)
    service.behave("good")
    service.until_serving()
    assert service.get()
    status = service.status()
    assert status is not None
    assert not status.gave_up


def test_a_copy_that_was_ready_and_crashes_again_and_again_keeps_its_ports(make_service: Serve) -> None:
    service = make_service("--give-up-after", "0.2")
    service.behave("dies 0.05")
    service.start()
    service.wait_for_log("exited with code 3", 3)
    assert can_connect(service.address)
    assert "no copy could be started" not in service.log()


def test_without_a_binder_run_binds_itself_and_reloads(run_dir: Path, host: str) -> None:
    with Service(run_dir, host, None) as service:
        service.start()
        service.until_serving()
        assert service.reload().ok
        assert service.get()
        assert service.stop() == 0
        assert not can_connect(service.address)
