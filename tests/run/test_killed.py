"""SIGKILL of ``run``, of the binder, of both: the sockets stay, the copy is taken over, and there are never two."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import termios
from pathlib import Path

from tests.run.conftest import Serve
from tests.run.support import Service
from tests.support import Binder, can_connect
from tests.support.load import Load
from tests.support.processes import is_alive
from tests.support.waiting import wait_until


def test_a_run_after_a_killed_one_takes_its_copy_over_and_clients_notice_nothing(service: Service) -> None:
    [pid] = service.pids()
    with Load([service.address], rate=200, timeout_s=20) as load:
        service.kill()
        assert is_alive(pid)
        service.start()
        service.wait_for_log("is taken over")
        assert service.until_serving().copies[0].pid == pid
        result = load.stop()
    assert result.total.failed == 0, result.table()
    assert service.own_processes() == {pid}


def test_a_copy_that_was_taken_over_is_reloaded_crashes_and_is_stopped_as_any_other(service: Service) -> None:
    [first] = service.pids()
    service.kill()
    service.start()
    service.until_serving()
    report = service.reload()
    assert report.ok, report
    assert not is_alive(first)
    [second] = report.new
    service.kill()
    service.start()
    service.until_serving()
    os.kill(second, signal.SIGKILL)
    assert service.get()
    [third] = service.until_serving().copies
    service.kill()
    service.start()
    service.until_serving()
    assert service.stop() == 0
    assert not is_alive(third.pid)
    assert not can_connect(service.address)


def test_what_a_copy_writes_while_no_run_lives_is_in_the_log_of_the_next(service: Service) -> None:
    [pid] = service.pids()
    service.kill()
    os.kill(pid, signal.SIGUSR1)
    wait_until(lambda: _has_output(pid), "the copy has written", log=service.log)
    assert is_alive(pid)
    service.start()
    service.wait_for_log("got SIGUSR1")


def test_a_copy_that_ended_while_no_run_lived_is_replaced_by_one(service: Service) -> None:
    [pid] = service.pids()
    service.kill()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the copy has ended")
    assert can_connect(service.address)
    service.start()
    [copy] = service.until_serving().copies
    assert service.own_processes() == {copy.pid}


def test_a_process_with_the_number_of_a_former_copy_is_not_taken_over(service: Service) -> None:
    [pid] = service.pids()
    service.kill()
    path = service.files / "copies.json"
    record = json.loads(path.read_text())
    record["copies"][0] |= {"pid": os.getpid()}  # this process began at another time
    path.write_text(json.dumps(record))
    os.kill(pid, signal.SIGKILL)
    service.start()
    [copy] = service.until_serving().copies
    assert copy.pid != os.getpid()
    assert service.stop() == 0


def test_a_run_killed_in_a_reload_leaves_one_copy_to_the_next(service: Service) -> None:
    [old] = service.pids()
    service.behave("late 60")
    with service.connect() as sock:
        service.tell(sock, "reload")
        service.wait_for_log("generation 2 is late")
        service.kill()
    service.start()
    assert service.until_serving().copies[0].pid == old
    wait_until(lambda: service.own_processes() == {old}, "the new copy is ended", log=service.log)


def test_a_copy_that_ignores_its_end_is_killed_by_the_next_run(make_service: Serve) -> None:
    service = make_service("--drain-timeout", "0.3")
    service.start()
    service.until_serving()
    [old] = service.pids()
    service.behave("hangs")
    with service.connect() as sock:
        service.tell(sock, "reload")
        service.wait_for_log("generation 2 is hangs")
        service.kill()
    assert len(service.own_processes()) == 2
    service.start()
    wait_until(lambda: service.own_processes() == {old}, "the new copy is killed", log=service.log)


def test_a_killed_binder_costs_no_client(service: Service, binder: Binder, run_dir: Path) -> None:
    """The copies have the sockets themselves. A binder that comes back recovers them from these."""
    with Load([service.address], rate=200, timeout_s=20) as load:
        binder.process.kill()
        binder.process.wait()
        service.behave("good")
        report = service.reload()  # run has the listeners, too
        assert report.ok, report
        assert any("the copy gets the listeners that are held" in each for each in _log_lines(service))
        with _next(binder, run_dir):
            assert service.reload().ok
            result = load.stop()
            assert service.stop() == 0
            assert not can_connect(service.address)
    assert result.total.failed == 0, result.table()


def test_after_a_kill_of_run_and_binder_both_come_back_to_the_same_copy(
    service: Service, binder: Binder, run_dir: Path
) -> None:
    [pid] = service.pids()
    with Load([service.address], rate=200, timeout_s=20) as load:
        service.kill()
        binder.process.kill()
        binder.process.wait()
        with _next(binder, run_dir):
            service.start()
            assert service.until_serving().copies[0].pid == pid
            result = load.stop()
            assert service.stop() == 0
            assert not can_connect(service.address)
    assert result.total.failed == 0, result.table()


def test_after_a_kill_of_both_run_restores_a_crashed_copy_before_the_binder_is_back(
    service: Service, binder: Binder
) -> None:
    [pid] = service.pids()
    service.kill()
    binder.process.kill()
    binder.process.wait()
    service.start()
    service.until_serving()
    os.kill(pid, signal.SIGKILL)
    assert service.get() != f"1 0 {pid}"


def test_without_a_binder_a_run_after_a_killed_one_gets_the_sockets_of_its_copy(run_dir: Path, host: str) -> None:
    with Service(run_dir, host, None) as service:
        service.start()
        service.until_serving()
        service.kill()
        service.start()
        service.until_serving()
        assert service.reload().ok
        os.kill(service.pids()[0], signal.SIGKILL)
        assert service.get()
        assert service.stop() == 0
        assert not can_connect(service.address)


def test_canaries_of_a_killed_run_are_ended(make_service: Serve) -> None:
    service = make_service("--canary", "1")
    service.start()
    service.until_serving()
    old = service.pids()
    assert service.reload().is_canary
    service.kill()
    service.start()
    service.wait_for_log("is taken over")
    wait_until(lambda: service.own_processes() == set(old), "the canary has ended", log=service.log)
    assert service.until_serving().copies[0].pid == old[0]


def test_other_settings_at_the_next_start_replace_the_copies_that_were_taken_over(make_service: Serve) -> None:
    service = make_service()
    service.use_config()
    service.start()
    service.until_serving()
    [old] = service.pids()
    service.kill()
    service.use_config(env={"VERSION": "2"})
    service.start()
    service.wait_for_log("is taken over")
    service.wait_for_log("reloaded in")
    [copy] = service.until_serving().copies
    assert copy.pid != old
    assert service.own_processes() == {copy.pid}


def test_a_run_killed_between_the_copies_of_a_reload_replaces_all(make_service: Serve) -> None:
    service = make_service()
    service.use_config(instances=2)
    service.start()
    service.until_serving(2)
    old = set(service.pids())
    service.use_config(instances=2, pre_start='test "$MULTIBINDER_INDEX" = 0 || sleep 8')
    with service.connect() as sock:
        service.tell(sock, "reload")
        wait_until(lambda: len(old & service.own_processes()) == 1, "one is replaced", log=service.log)
        service.kill()
    service.use_config(instances=2)
    service.start()
    service.wait_for_log("reloaded in")
    status = service.until_serving(2)
    assert {copy.generation for copy in status.copies} == {3}
    assert len(service.own_processes()) == 2


def test_a_start_waits_for_a_binder_that_is_away(make_service: Serve, binder: Binder, run_dir: Path) -> None:
    service = make_service("--wait", "20")
    assert binder.stop() == 0
    service.start()
    wait_until(lambda: service.status() is not None, "run answers", log=service.log)
    with _next(binder, run_dir):
        service.until_serving()
        assert service.get()
        assert service.stop() == 0


def test_a_stop_without_a_binder_ends_the_copies_and_says_that_ports_are_left(service: Service, binder: Binder) -> None:
    assert binder.stop() == 0
    assert service.stop() == 1
    assert "could not be released" in service.log()
    assert service.own_processes() == set()


def _next(binder: Binder, run_dir: Path) -> Binder:
    """Start a binder at the control socket of one that has ended."""
    return Binder(run_dir, "--socket", str(binder.socket_path), name="next").wait_until_ready()


def _has_output(pid: int) -> bool:
    """Return whether the pipe that is the stdout of a process has unread bytes."""
    with open(f"/proc/{pid}/fd/1", "rb", buffering=0) as pipe:
        os.set_blocking(pipe.fileno(), False)
        count = fcntl.ioctl(pipe.fileno(), termios.FIONREAD, struct.pack("i", 0))
        return bool(struct.unpack("i", count)[0])


def _log_lines(service: Service) -> list[str]:
    return service.log_path.read_text().splitlines()
