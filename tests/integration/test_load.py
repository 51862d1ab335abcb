"""The load generator, tested on small real servers, tells outcomes apart and counts waits from the schedule."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import load
from tests.support.load import Load, LoadError, Result, target_of

LOAD = Path(load.__file__)

Answer = Callable[[socket.socket], None]
Name = tuple[str, int]


def ok(client: socket.socket) -> None:
    client.recv(65536)
    client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def says(reply: bytes) -> Answer:
    def answer(client: socket.socket) -> None:
        client.recv(65536)
        client.sendall(reply)

    return answer


@contextmanager
def listener(backlog: int = 1024) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as sock:
        yield sock


@contextmanager
def server(answer: Answer = ok) -> Iterator[Name]:
    """Run a server with one thread. While it serves a connection, the next one waits."""

    def serve() -> None:
        while True:
            client, _ = sock.accept()
            with client:
                if stopping.is_set():
                    return
                answer(client)

    stopping = threading.Event()
    with listener() as sock:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield sock.getsockname()
        finally:
            stopping.set()
            socket.create_connection(sock.getsockname()).close()
            thread.join()


def closed_port() -> Name:
    with listener() as sock:
        name: Name = sock.getsockname()
    return name


def wait_for_snapshot(load: Load, condition: Callable[[Result], bool], deadline_s: float = 10.0) -> Result:
    """Wait for a snapshot that meets the condition, and return it."""
    deadline = time.monotonic() + deadline_s
    while not condition(result := load.snapshot()):
        assert time.monotonic() < deadline, result.table()
        time.sleep(0.01)
    return result


def outcome_of(target: Name, *, timeout_s: float = 5.0, expect_status: int = 200) -> Result:
    """Return the result of a load on one target after at least twenty connections."""
    with Load([target], rate=200, timeout_s=timeout_s, expect_status=expect_status) as load:
        wait_for_snapshot(load, lambda result: result.total.tried >= 20)
        return load.stop()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(LOAD), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_every_connection_to_an_answering_server_is_ok() -> None:
    with server() as target:
        total = outcome_of(target).total
    assert total.ok == total.tried >= 20
    assert total.failed == total.in_flight == 0
    assert 0 < total.p50_s <= total.p99_s <= total.longest_wait_s


def test_a_closed_port_counts_as_refused() -> None:
    total = outcome_of(closed_port()).total
    assert total.refused == total.failed == total.tried
    assert total.causes == {"ECONNREFUSED": total.tried}


def test_a_connection_that_the_server_aborts_counts_as_reset() -> None:
    with server(reset) as target:
        total = outcome_of(target).total
    assert total.reset == total.failed == total.tried


@pytest.mark.parametrize(
    "reply", [b"", b"HTTP/1.0 200 OK\r\nContent-", b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\ncut"]
)
def test_the_end_before_a_complete_reply_counts_as_reset(reply: bytes) -> None:
    with server(says(reply)) as target:
        total = outcome_of(target).total
    assert total.reset == total.failed == total.tried
    assert total.causes == {"EOF": total.tried}


def test_a_listener_without_an_accepting_process_counts_as_timed_out() -> None:
    with listener() as sock:
        total = outcome_of(sock.getsockname(), timeout_s=0.3).total
    assert total.timed_out == total.failed == total.tried
    assert total.longest_wait_s >= 0.3
    assert total.p50_s >= 0.3


def test_an_unexpected_status_is_neither_ok_nor_lost_on_the_way() -> None:
    with server(says(b"HTTP/1.0 503 Service Unavailable\r\n\r\n")) as target:
        unexpected = outcome_of(target).total
        expected = outcome_of(target, expect_status=503).total
    assert unexpected.bad_status == unexpected.failed == unexpected.tried
    assert unexpected.causes == {"status 503": unexpected.tried}
    assert expected.ok == expected.tried


def test_a_reply_that_is_not_http_is_a_bad_status() -> None:
    with server(says(b"SSH-2.0-OpenSSH\r\n")) as target:
        total = outcome_of(target).total
    assert total.bad_status == total.tried


def test_an_error_of_another_kind_is_counted_by_name() -> None:
    total = outcome_of(("255.255.255.255", 1)).total
    assert total.other == total.failed == total.tried
    assert set(total.causes) <= {"EACCES", "ENETUNREACH"}


def test_a_stall_shows_in_the_wait_of_every_connection_scheduled_during_it() -> None:
    stalled = threading.Lock()

    def stalling(client: socket.socket) -> None:
        with stalled:
            ok(client)

    with server(stalling) as target, Load([target], rate=200) as load:
        with stalled:
            load.mark("stall")
            time.sleep(0.5)
            load.mark("after")
        wait_for_snapshot(load, lambda result: result.phase("after").ok >= 20)
        result = load.stop()
    stall = result.phase("stall")
    assert result.total.failed == 0
    assert stall.tried >= 99
    assert stall.longest_wait_s >= 0.45
    assert stall.p50_s >= 0.2


def test_the_generators_own_lateness_is_a_wait_and_is_reported_as_its_own() -> None:
    with server() as target, Load([target], rate=200) as load:
        os.kill(load.pid, signal.SIGSTOP)
        time.sleep(0.4)
        os.kill(load.pid, signal.SIGCONT)
        result = load.stop()
    assert result.total.generator_lag_max_s >= 0.35
    assert result.total.longest_wait_s >= result.total.generator_lag_max_s
    assert result.total.p50_s >= 0.15  # every connection that was due meanwhile, not only the one in flight
    assert result.total.tried >= 79
    assert result.total.ok == result.total.tried


def test_a_connection_counts_in_the_phase_in_which_it_was_scheduled() -> None:
    with listener() as sock, Load([sock.getsockname()], rate=200, timeout_s=0.5) as load:
        load.mark("before")
        wait_for_snapshot(load, lambda result: result.phase("before").tried >= 20)
        load.mark("after")
        early = wait_for_snapshot(load, lambda result: result.phase("before").in_flight == 0)
        result = load.stop()
    assert early.phase("before").tried == result.phase("before").tried
    assert early.phase("before").timed_out == early.phase("before").tried
    assert sum(phase.tried for phase in result.phases) == result.total.tried


def test_a_phase_marked_while_the_generator_was_late_does_not_take_connections_due_before_it() -> None:
    with server() as target, Load([target], rate=200) as load:
        load.mark("late")
        os.kill(load.pid, signal.SIGSTOP)
        marking = threading.Thread(target=load.mark, args=("next",))
        marking.start()
        time.sleep(0.4)
        os.kill(load.pid, signal.SIGCONT)
        marking.join()
        result = load.stop()
    assert result.phase("late").tried >= 79


def test_a_name_marked_again_resumes_its_phase() -> None:
    with server() as target, Load([target], rate=200) as load:
        load.mark("reload")
        load.mark("steady")
        load.mark("reload")
        wait_for_snapshot(load, lambda result: result.phase("reload").ok >= 10)
        result = load.stop()
    assert [phase.name for phase in result.phases] == ["start", "reload", "steady"]


@pytest.mark.parametrize("rate", [200, 333.3])
def test_the_number_tried_is_the_rate_times_the_time(rate: float) -> None:
    with server() as target, Load([target], rate=rate) as load:
        time.sleep(2)
        result = load.stop()
    assert result.duration_s >= 2
    assert abs(result.total.tried - rate * result.duration_s) <= 1


def test_targets_come_and_go_while_it_runs() -> None:
    gone = closed_port()
    with server() as target, Load([target], rate=200) as load:
        load.mark("both")
        load.add_target(*gone)
        wait_for_snapshot(load, lambda result: result.phase("both").refused >= 10)
        load.remove_target(*gone)
        load.mark("one")
        wait_for_snapshot(load, lambda result: result.phase("one").ok >= 10)
        result = load.stop()
    both, one = result.phase("both"), result.phase("one")
    assert both.ok >= 9
    assert both.refused + both.ok == both.tried
    assert one.ok == one.tried


def test_removing_a_target_waits_for_its_connections() -> None:
    with server() as target, listener() as silent, Load([target], rate=200, timeout_s=0.4) as load:
        load.add_target(*silent.getsockname())
        wait_for_snapshot(load, lambda result: result.total.in_flight >= 11)
        load.remove_target(*silent.getsockname())
        load.mark("after")
        assert load.snapshot().phase("start").in_flight <= 1  # of the server that answers
        result = load.stop()
    assert result.phase("start").timed_out >= 10
    assert result.phase("after").timed_out == 0


def test_an_impossible_command_is_an_error_and_the_load_goes_on() -> None:
    with server() as target, Load([target], rate=200) as load:
        with pytest.raises(LoadError, match="is the only target"):
            load.remove_target(*target)
        with pytest.raises(LoadError, match=r"127\.0\.0\.1:1 is not a target"):
            load.remove_target("127.0.0.1", 1)
        wait_for_snapshot(load, lambda result: result.total.ok >= 10)
        assert load.stop().total.failed == 0


def test_connections_to_loopback_come_from_many_addresses() -> None:
    peers: set[str] = set()

    def noting(client: socket.socket) -> None:
        peers.add(client.getpeername()[0])
        ok(client)

    with server(noting) as target:
        outcome_of(target)
    assert peers - {"127.0.0.1"} == {f"127.0.0.{last}" for last in range(2, 10)}


def test_bodies_are_counted_by_their_first_line() -> None:
    with server() as target, Load([target], rate=200, bodies=True) as load:
        wait_for_snapshot(load, lambda result: result.total.ok >= 10)
        total = load.stop().total
    assert total.bodies == {"hello": total.ok}


def fail_inside(load: Load) -> int:
    try:
        with load:
            pid = load.pid
            raise ZeroDivisionError
    except ZeroDivisionError:
        return pid


def test_leaving_the_context_ends_the_process_even_on_an_error() -> None:
    with server() as target:
        load = Load([target], rate=200)
        pid = fail_inside(load)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        with pytest.raises(LoadError, match="not running"):
            load.snapshot()


def test_a_load_whose_process_died_says_so() -> None:
    with server() as target, Load([target], rate=200) as load:
        os.kill(load.pid, signal.SIGKILL)
        with pytest.raises(LoadError, match="ended, with exit status -9"):
            load.stop()


def test_the_process_of_the_load_ends_with_its_caller() -> None:
    with server() as (host, port):
        command = [sys.executable, str(LOAD), "--control", "--rate", "50", f"{host}:{port}"]
        ended = subprocess.run(command, stdout=subprocess.PIPE, input=b"", timeout=10, check=False)
    assert ended.returncode == 1


def test_the_command_prints_a_table_and_succeeds_when_all_is_ok() -> None:
    with server() as (host, port):
        ended = run("--rate", "200", "--duration", "0.5", f"{host}:{port}")
    assert ended.returncode == 0, ended.stderr
    title, total = (line.split() for line in ended.stdout.splitlines()[:2])
    assert title[:4] == ["phase", "tried", "ok", "refused"]
    assert total[:4] == ["total", "100", "100", "0"]


def test_the_command_fails_when_a_connection_was_refused() -> None:
    host, port = closed_port()
    ended = run("--rate", "200", "--duration", "0.1", f"{host}:{port}")
    assert ended.returncode == 1
    assert "ECONNREFUSED: 20" in ended.stdout


@pytest.mark.parametrize(("text", "name"), [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:443", ("::1", 443))])
def test_a_target_is_written_as_host_and_port(text: str, name: Name) -> None:
    assert target_of(text) == name
