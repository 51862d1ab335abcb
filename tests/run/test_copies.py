"""Several copies, canaries, and copies that may not run twice."""

from __future__ import annotations

import os
import signal

from tests.run.conftest import Serve
from tests.run.support import Service
from tests.support.load import Load
from tests.support.processes import is_alive
from tests.support.waiting import wait_until


def _instances(make_service: Serve, number: int, *options: str) -> Service:
    service = make_service("--instances", str(number), *options)
    service.start()
    service.until_serving(number)
    return service


def test_each_copy_has_its_index_and_a_crash_restores_that_one_alone(make_service: Serve) -> None:
    service = _instances(make_service, 3)
    status = service.until_serving(3)
    assert sorted(copy.index for copy in status.copies) == [0, 1, 2]
    victim = next(copy for copy in status.copies if copy.index == 1)
    os.kill(victim.pid, signal.SIGKILL)
    service.wait_for_log("was killed by SIGKILL")
    after = service.until_serving(3)
    kept = {copy.pid for copy in status.copies} - {victim.pid}
    assert kept < {copy.pid for copy in after.copies}
    assert sorted(copy.index for copy in after.copies) == [0, 1, 2]


def test_copies_are_replaced_one_by_one_and_no_client_is_lost(make_service: Serve) -> None:
    service = _instances(make_service, 2)
    old = service.pids()
    with Load([service.address], rate=200, timeout_s=20) as load:
        report = service.reload()
        result = load.stop()
    assert report.ok, report
    assert sorted(report.old) == sorted(old)
    assert not {*old} & {*service.pids()}
    assert result.total.failed == 0, result.table()
    # The second copy was started when the first of the new ones served, and its old one had ended.
    assert service.log().count("starting a copy of generation 2") == 2


def test_if_a_later_copy_fails_the_first_ones_go_back_to_the_earlier_settings(make_service: Serve) -> None:
    service = make_service()
    service.use_config(instances=2)
    service.start()
    service.until_serving(2)
    # The hook of the second place fails.
    service.use_config(instances=2, env={"VERSION": "2"}, post_ready='test "$MULTIBINDER_INDEX" = 0')
    report = service.reload()
    assert not report.ok
    status = service.until_serving(2)
    for copy in status.copies:
        assert b"VERSION=2" not in _environment(copy.pid)
    assert len(service.own_processes()) == 2


def test_a_reload_changes_the_number_of_copies(make_service: Serve) -> None:
    service = make_service()
    service.use_config(instances=1)
    service.start()
    service.until_serving(1)
    service.use_config(instances=3)
    assert service.reload().ok
    service.until_serving(3)
    service.use_config(instances=1)
    assert service.reload().ok
    service.until_serving(1)
    assert len(service.own_processes()) == 1


def test_with_overlap_0_the_old_copy_has_ended_before_the_new_one_starts_and_clients_wait(make_service: Serve) -> None:
    service = make_service("--max-overlap", "0")
    service.start()
    service.until_serving()
    [old] = service.pids()
    with Load([service.address], rate=200, timeout_s=20) as load:
        service.behave("late 0.5")
        sock = service.connect()
        service.tell(sock, "reload")
        service.wait_for_log("generation 2 is late")
        assert not is_alive(old)
        answer = service.answer(sock)
        sock.close()
        result = load.stop()
    assert answer is not None
    assert answer.report is not None
    assert answer.report.ok
    assert result.total.failed == 0, result.table()


def test_with_overlap_0_a_new_copy_that_fails_makes_way_for_one_of_the_earlier_settings(make_service: Serve) -> None:
    service = make_service()
    service.use_config(max_overlap=0)
    service.start()
    service.until_serving()
    service.use_config(max_overlap=0, env={"VERSION": "2"}, post_ready="exit 1")
    report = service.reload()
    assert not report.ok
    [copy] = service.until_serving().copies
    assert b"VERSION=2" not in _environment(copy.pid)
    assert service.own_processes() == {copy.pid}


def test_canaries_serve_beside_the_others_until_continue(make_service: Serve) -> None:
    service = _instances(make_service, 2, "--canary", "50%")
    old = set(service.pids())
    report = service.reload()
    assert report.ok
    assert report.is_canary
    status = service.status()
    assert status is not None
    assert status.state == "canary"
    assert old < {copy.pid for copy in status.copies}
    second = service.report("reload")
    assert not second.ok  # first a decision
    report = service.report("continue")
    assert report.ok, report
    assert not old & {copy.pid for copy in service.until_serving(2).copies}


def test_canaries_are_ended_by_abort(make_service: Serve) -> None:
    service = _instances(make_service, 1, "--canary", "1")
    old = service.pids()
    assert service.reload().is_canary
    report = service.report("abort")
    assert not report.ok
    assert report.new == old
    service.until_serving()
    assert service.own_processes() == set(old)
    answer = service.ask("continue")
    assert answer is not None
    assert "has no canary" in answer.error


def test_a_canary_that_crashes_ends_the_reload(make_service: Serve) -> None:
    service = _instances(make_service, 1, "--canary", "1")
    old = service.pids()
    report = service.reload()
    [canary] = set(report.new) - set(old)
    os.kill(canary, signal.SIGKILL)
    service.wait_for_log("reload failed: a canary has ended")
    service.until_serving()
    assert service.pids() == old
    assert service.reload().is_canary  # the next one is not refused


def test_canaries_without_a_crash_for_their_time_are_followed_by_the_others(make_service: Serve) -> None:
    service = _instances(make_service, 2, "--canary", "1", "--canary-for", "0.3")
    old = set(service.pids())
    report = service.reload()
    assert report.ok, report
    assert not report.is_canary
    assert not old & {copy.pid for copy in service.until_serving(2).copies}


def test_a_stop_ends_canaries_too(make_service: Serve) -> None:
    service = _instances(make_service, 1, "--canary", "1")
    assert service.reload().is_canary
    assert service.stop() == 0
    wait_until(lambda: service.own_processes() == set(), "all copies have ended", log=service.log)


def test_a_crash_while_canaries_serve_is_restored_with_the_earlier_settings(make_service: Serve) -> None:
    service = make_service()
    service.use_config(canary="1")
    service.start()
    service.until_serving()
    [old] = service.pids()
    service.use_config(canary="1", env={"VERSION": "2"})
    assert service.reload().is_canary
    os.kill(old, signal.SIGKILL)
    service.wait_for_log("was killed by SIGKILL")
    service.wait_for_log("of generation 1 serves", 2)
    report = service.report("abort")
    [copy] = service.until_serving().copies
    assert report.new == [copy.pid]
    assert b"VERSION=2" not in _environment(copy.pid)


def _environment(pid: int) -> bytes:
    with open(f"/proc/{pid}/environ", "rb") as file:
        return file.read()


def test_with_overlap_0_a_reload_in_a_crash_loop_never_runs_two(make_service: Serve) -> None:
    service = make_service()
    service.use_config(max_overlap=0, give_up_after=60)
    service.behave("late 0.3")
    service.start()
    service.wait_for_log("generation 1 is late")
    report = service.reload()  # while the first start is under way
    assert report.ok, report
    [copy] = service.until_serving().copies
    assert service.own_processes() == {copy.pid}
    assert copy.generation == 2


def test_a_reload_takes_the_place_of_a_start_that_is_under_way(make_service: Serve) -> None:
    service = make_service()
    service.behave("late 60")
    service.start()
    service.wait_for_log("generation 1 is late")
    service.behave("late 0.3")
    assert service.reload().ok
    [copy] = service.until_serving().copies
    wait_until(lambda: service.own_processes() == {copy.pid}, "no other copy is left", log=service.log)
    assert service.log().count("is late") == 2
