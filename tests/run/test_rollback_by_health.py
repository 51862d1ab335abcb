"""Reloads under load whose new copy has a health of its own to show: what is no good serves no client."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.run.support import Service
from tests.support import Binder
from tests.support.campaign import times
from tests.support.load import Load
from tests.support.waiting import wait_until

SERVER = Path(__file__).with_name("health_server.py")


class HealthService(Service):
    """An instance whose copies get a private listener for their health."""

    @property
    def _command(self) -> list[str]:
        return [sys.executable, "-I", str(SERVER), str(self.behaviour_file), "{web}", "{ready}"]


@pytest.fixture
def service(run_dir: Path, host: str, binder: Binder) -> Iterator[HealthService]:
    service = HealthService(run_dir, host, binder.socket_path)
    with service:
        service.binds = [f"{host}:8000=web"]
        service.options = ["--ready-http", "http://{ready}/health", "--ready-timeout", "1", "--stable-for", "2"]
        service.start()
        service.until_serving()
        yield service


@pytest.mark.parametrize(
    ("behaviour", "words", "last_line"),
    [
        ("exits", "exited with code 1 before it was ready", "no such table: customers"),
        (
            "hangs",
            "was not ready within 1 s: waited for GET http://{ready}/health; last: no answer yet",
            "generation 2 is hangs",
        ),
        ("status 500", "last: it answered 500", "generation 2 is status"),
        ("garbage", "which is no HTTP", "generation 2 is garbage"),
        ("closes", "last: it closed the connection without an answer", "generation 2 is closes"),
        ("late 600", "last: it answered 503", "generation 2 is late"),
        ("dies 1", "exited with code 137 within 2 s after it was ready", "out of memory"),
    ],
)
def test_the_old_copy_serves_throughout_and_the_report_is_right(
    behaviour: str, words: str, last_line: str, service: HealthService
) -> None:
    [old] = service.pids()
    service.behave(behaviour)
    with Load([service.address], rate=500, timeout_s=20, bodies=True) as load:
        for number in range(times(1, 10)):
            report = service.reload()
            assert not report.ok
            assert words in report.message, report
            assert report.old == report.new == [old]
            assert report.output[-1] == last_line.replace("2", str(number + 2)), report
        result = load.stop()
    assert result.total.failed == 0, result.table()
    if not behaviour.startswith("dies"):
        assert set(result.total.bodies) == {str(old)}, "only the old copy has served"
    wait_until(lambda: service.pids() == [old], "the new copy has gone", log=service.log)


def test_a_version_that_is_ready_late_is_waited_for_and_none_is_lost(service: HealthService) -> None:
    late_s = times(2, 20)
    [old] = service.pids()
    service.stop()
    service.options = [*service.options[:2], "--ready-timeout", "40"]
    service.start()
    service.until_serving()
    [old] = service.pids()
    service.behave(f"late {late_s}")
    with Load([service.address], rate=500, timeout_s=20) as load:
        report = service.reload()
        assert report.ok, report
        result = load.stop()
    assert report.took_s > late_s
    assert report.old == [old]
    assert report.new == service.pids() != [old]
    assert result.total.failed == 0, result.table()


def test_a_redirection_is_the_answer_of_a_server_that_works(service: HealthService) -> None:
    service.behave("redirects")
    report = service.reload()
    assert report.ok, report
    wait_until(lambda: service.get() == str(report.new[0]), "the new copy serves", log=service.log)


def test_on_the_shared_address_the_answers_of_the_old_copy_do_not_count(service: HealthService) -> None:
    service.stop()
    service.options = ["--ready-http", "http://{web}/", "--ready-timeout", "1", "--stable-for", "2"]
    service.behave("eager")
    service.start()
    [old] = service.until_serving().copies
    service.behave("late 600")  # it never serves clients
    report = service.reload()
    assert not report.ok
    assert "another process accepted" in report.message
    assert report.new == [old.pid]


def test_a_check_by_https_that_a_reload_brings_is_used(run_dir: Path, host: str, binder: Binder) -> None:
    with HealthService(run_dir, host, binder.socket_path) as service:
        service.binds = [f"{host}:8000=web"]
        service.use_config(ready_http="http://{ready}/", ready_timeout=1)
        service.start()
        service.until_serving()
        service.use_config(ready_http="https://{ready}/", ready_timeout=1)
        report = service.reload()
        assert not report.ok
        assert "waited for GET https://{ready}/; last: the connection broke" in report.message
        service.use_config(ready_http="https://name/", ready_timeout=1)
        report = service.reload()
        assert not report.ok
        assert "'name' is a name" in report.message
