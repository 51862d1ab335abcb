"""A reload whose new copy is no good: the old copy serves throughout, no client is lost, and the report says why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from multibinder.launch.run.report import ReloadReport
from tests.run.conftest import Serve
from tests.run.support import Service
from tests.support.load import Load
from tests.support.waiting import wait_until


@contextmanager
def _nothing_is_lost(service: Service) -> Iterator[None]:
    """Let clients connect while the block runs, and fail if one of them has no answer of status 200."""
    with Load([service.address], rate=200, timeout_s=20) as load:
        yield
        result = load.stop()
    assert result.total.failed == 0, result.table()
    assert result.total.tried


def _fails(service: Service) -> ReloadReport:
    """Reload, and expect the old copy to be the only one afterwards."""
    old = service.pids()
    with _nothing_is_lost(service):
        report = service.reload()
    assert not report.ok
    assert report.old == report.new == old
    service.until_serving()
    wait_until(lambda: service.own_processes() == set(old), "the new copy has gone", log=service.log)
    assert service.get().endswith(str(old[0]))
    return report


def test_a_new_copy_that_exits_at_once_changes_nothing_and_its_output_is_reported(service: Service) -> None:
    service.behave("exits")
    report = _fails(service)
    assert "exited with code 1 before it was ready" in report.message
    assert report.output[-1] == "something is wrong with this version"


def test_a_new_copy_that_hangs_is_ended_at_the_time_limit(make_service: Serve) -> None:
    service = make_service("--ready-timeout", "0.5", "--ready-notify")
    service.start()
    service.until_serving()
    service.behave("hangs")
    report = _fails(service)
    assert "was not ready within 0.5 s: waited for READY=1" in report.message


def test_a_new_copy_that_answers_500_is_ended_and_the_old_one_is_not_taken_for_it(make_service: Serve) -> None:
    service = make_service("--ready-timeout", "1")
    service.options = [*service.options, "--ready-http", f"http://{service.host}:8000/"]
    service.start()
    service.until_serving()
    service.behave("answers500")
    old = service.pids()
    report = service.reload()  # the new copy shares the queue, and answers some clients with 500
    assert not report.ok
    assert report.new == old
    assert "500" in report.message


def test_a_new_copy_that_is_ready_late_is_waited_for(service: Service) -> None:
    service.behave("late 2")
    with _nothing_is_lost(service):
        report = service.reload()
    assert report.ok, report
    assert service.pids() == report.new


def test_a_new_copy_that_is_ready_and_dies_soon_after_leaves_the_old_one(make_service: Serve) -> None:
    service = make_service("--stable-for", "2")
    service.start()
    service.until_serving()
    service.behave("dies 1")
    old = service.pids()
    report = service.reload()
    assert not report.ok
    assert report.new == old
    assert "exited with code 3 within 2 s after it was ready" in report.message
    assert report.output[-1] == "dies now"
    assert service.get().endswith(str(old[0]))


@pytest.mark.parametrize("hook", ["exit 4", "sleep 60"])
def test_a_post_ready_hook_that_fails_rolls_back(make_service: Serve, hook: str) -> None:
    service = make_service()
    service.use_config()
    service.start()
    service.until_serving()
    service.use_config(post_ready=f"echo not yet; {hook}", hook_timeout=0.5)
    report = _fails(service)
    assert "the post-ready hook" in report.message
    assert report.output[-1] == "not yet"


def test_a_broken_file_of_settings_touches_nothing(make_service: Serve) -> None:
    service = make_service()
    config_file = service.use_config()
    service.start()
    service.until_serving()
    config_file.write_text("command = [")
    report = _fails(service)
    assert "is no TOML" in report.message


def test_a_reload_ends_a_pause_after_a_crash(make_service: Serve) -> None:
    service = make_service()
    service.behave("exits")
    service.start()
    service.wait_for_log("it is tried again in 0.8 s")
    service.behave("good")
    report = service.reload()
    assert report.ok, report
    service.until_serving()
    assert service.get()


def test_a_reload_replaces_nothing_when_no_descriptor_is_left(make_service: Serve) -> None:
    service = make_service()
    service.start()
    service.until_serving()
    with service.no_more_descriptors():
        report = service.reload()
    assert not report.ok
    assert "Too many open files" in report.message
    assert service.get()
    assert service.reload().ok
