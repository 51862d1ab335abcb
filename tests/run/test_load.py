"""Ten reloads and a crash under 500 connections a second: nothing is refused, and nothing is lost by a reload."""

from __future__ import annotations

import os
import signal

from tests.run.conftest import Serve
from tests.support.campaign import times
from tests.support.load import Load


def test_reloads_under_load_lose_no_client(make_service: Serve) -> None:
    service = make_service("--stable-for", "0", "--instances", "2")
    service.start()
    service.until_serving(2)
    with Load([service.address], rate=500, timeout_s=20, bodies=True) as load:
        for _ in range(times(5, 50)):
            report = service.reload()
            assert report.ok, report
        result = load.stop()
    assert result.total.failed == 0, result.table()
    assert len(result.total.bodies) > 2  # more copies than there were at first


def test_crashes_under_load_refuse_no_client(make_service: Serve) -> None:
    """A copy takes the clients with it that it has accepted. All others wait for the next one."""
    service = make_service()
    service.start()
    service.until_serving()
    with Load([service.address], rate=500, timeout_s=20) as load:
        for _ in range(times(2, 4)):
            os.kill(service.pids()[0], signal.SIGKILL)
            assert service.get()
            service.until_serving()
        result = load.stop()
    assert result.total.refused == result.total.timed_out == result.total.bad_status == 0, result.table()
    assert result.total.reset <= times(2, 4), result.table()
