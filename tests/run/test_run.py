"""One instance with one copy: it starts, is reloaded, crashes and stops."""

from __future__ import annotations

import os
import signal

from tests.run.conftest import Serve
from tests.run.support import Service
from tests.support import can_connect
from tests.support.campaign import times
from tests.support.processes import is_alive
from tests.support.waiting import wait_until


def test_a_copy_serves_and_a_stop_closes_the_port(service: Service) -> None:
    [pid] = service.pids()
    assert service.get() == f"1 0 {pid}"
    assert service.stop() == 0
    assert not is_alive(pid)
    assert not can_connect(service.address)


def test_a_reload_replaces_the_copy_and_waits_for_the_end_of_the_old_one(service: Service) -> None:
    [old] = service.pids()
    report = service.reload()
    assert report.ok, report
    assert report.old == [old]
    [new] = service.pids()
    assert report.new == [new] != [old]
    assert not is_alive(old)
    assert service.get() == f"2 0 {new}"


def test_a_copy_that_crashes_is_started_again_and_its_clients_wait(service: Service) -> None:
    [pid] = service.pids()
    os.kill(pid, signal.SIGKILL)
    assert service.get() != f"1 0 {pid}"
    service.wait_for_log("was killed by SIGKILL")


def test_sighup_reloads(service: Service) -> None:
    [old] = service.pids()
    service.process.send_signal(signal.SIGHUP)
    service.wait_for_log("reloaded in")
    assert service.pids() != [old]


def test_signals_that_mean_nothing_to_run_are_passed_on(service: Service) -> None:
    service.process.send_signal(signal.SIGUSR1)
    service.wait_for_log("got SIGUSR1")


def test_concurrent_reloads_are_one(service: Service) -> None:
    service.behave("late 1")
    first = service.connect()
    service.tell(first, "reload")
    service.wait_for_log("generation 2 is late")
    later = [service.connect() for _ in range(5)]
    for sock in later:
        service.tell(sock, "reload")
    reports = [answer.report for sock in [first, *later] if (answer := service.answer(sock)) is not None]
    for sock in [first, *later]:
        sock.close()
    assert [report.generation for report in reports if report is not None] == [2, 3, 3, 3, 3, 3]


def test_a_second_run_of_the_same_name_is_refused(service: Service) -> None:
    second = service.start()
    assert second.wait(20) == 1
    service._started.pop()
    assert f"runs already (pid {service.process.pid})" in service.log()
    assert len(service.pids()) == 1


def test_a_stop_with_a_copy_that_does_not_finish_kills_it_and_says_so(make_service: Serve) -> None:
    service = make_service("--drain-timeout", "0.2")
    service.behave("ignores")
    service.start()
    service.until_serving()
    [pid] = service.pids()
    assert service.stop() == 1
    assert "was killed" in service.log()
    assert not is_alive(pid)


def test_a_second_signal_kills_at_once(make_service: Serve) -> None:
    service = make_service()
    service.behave("ignores")
    service.start()
    service.until_serving()
    service.process.send_signal(signal.SIGTERM)
    service.wait_for_log("stopped by SIGTERM")
    assert service.stop(signal.SIGINT) == 1
    assert service.own_processes() == set()


def test_a_stop_that_keeps_the_listeners_lets_clients_wait_for_the_next_start(service: Service) -> None:
    service.ask("stop", keep_listeners=True)
    assert service.wait() == 0
    assert can_connect(service.address)
    service.start()
    assert service.get().startswith("1 0 ") or service.get()


def test_a_stop_during_a_reload_ends_all_copies(make_service: Serve) -> None:
    service = make_service()
    service.start()
    service.until_serving()
    service.behave("late 30")
    sock = service.connect()
    service.tell(sock, "reload")
    service.wait_for_log("generation 2 is late")
    assert service.stop() == 0
    answer = service.answer(sock)
    sock.close()
    assert answer is None or answer.report is None or not answer.report.ok
    assert service.own_processes() == set()
    assert not can_connect(service.address)


def test_what_a_copy_leaves_behind_at_a_crash_is_told_to_end(make_service: Serve) -> None:
    service = make_service()
    service.behave("forks")
    service.start()
    service.until_serving()
    first = service.own_processes()
    assert len(first) == 2
    service.behave("good")
    [pid] = service.pids()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not first & service.own_processes(), "no process of the first copy is left", log=service.log)
    service.until_serving()
    assert len(service.own_processes()) == 1


def test_a_stop_in_the_moment_in_which_a_copy_becomes_ready_leaves_none(make_service: Serve) -> None:
    service = make_service()
    service.start()
    service.until_serving()
    for _ in range(times(3, 50)):
        [pid] = service.pids()
        os.kill(pid, signal.SIGKILL)
        assert service.get()  # the next copy has just said that it is ready
        assert service.stop() == 0
        assert service.own_processes() == set()
        service.start()
        service.until_serving()


def test_a_stop_while_an_old_copy_drains_waits_for_it_and_tells_it_once(make_service: Serve) -> None:
    service = make_service()
    service.behave("drains 1")
    service.start()
    service.until_serving()
    service.behave("good")
    with service.connect() as sock:
        service.tell(sock, "reload")
        service.wait_for_log("]: drains")
        assert service.stop() == 0
    service.wait_for_log("has drained")


def test_a_copy_that_is_stopped_by_sigstop_ends_at_a_stop(service: Service) -> None:
    [pid] = service.pids()
    os.kill(pid, signal.SIGSTOP)
    assert service.stop() == 0
    assert not is_alive(pid)


def test_a_pre_stop_hook_that_fails_is_a_warning(make_service: Serve) -> None:
    service = make_service("--pre-stop", "echo pid $MULTIBINDER_PID; exit 1")
    service.start()
    service.until_serving()
    [old] = service.pids()
    report = service.reload()
    assert report.ok
    assert any("the pre-stop hook failed" in each for each in report.warnings)
    service.wait_for_log(f"pid {old}")
