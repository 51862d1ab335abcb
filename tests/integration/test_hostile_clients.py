"""Clients that are slow, silent, rude or gone. Nobody else waits for them, and nothing of them stays."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from pathlib import Path

import pytest

from multibinder import Client, RequestError
from tests.conftest import StartBinder
from tests.support import Binder, RawClient, can_connect, later, request, wait_until, without_privileges

HELLO = request("hello")
#: What a good client may have to wait: far more than it takes, far less than any timeout.
AT_ONCE_S = 2.0


def assert_a_good_client_is_served(binder: Binder, host: str, port: int = 8999) -> None:
    with Client(binder.socket_path, timeout=AT_ONCE_S) as client:
        with client.bind([(host, port)])[0] as listener:
            assert listener.getsockname() == (host, port)
        client.release([(host, port)])


def stuff(client: RawClient, text: bytes) -> None:
    """Send and never read, until the binder takes no more of it."""
    client.socket.setblocking(False)
    quiet_since = time.monotonic()

    def takes_no_more() -> bool:
        nonlocal quiet_since
        with contextlib.suppress(BlockingIOError):
            while client.socket.send(text):
                quiet_since = time.monotonic()
        return time.monotonic() > quiet_since + 0.2

    wait_until(takes_no_more, "the binder stops reading from a client that does not read")


def resident_kb(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


def test_a_client_that_is_gone_before_its_answer_leaves_no_listener(binder: Binder, host: str) -> None:
    before = binder.descriptors()
    binder.suspend()
    with RawClient(binder.socket_path) as client:
        client.send(request("bind", {"address": host, "port": 8000}, {"address": host, "port": 8001}))
    binder.resume()
    binder.wait_for_log("event=withdrawn")
    with RawClient(binder.socket_path) as other:
        assert other.ask(request("list"))["result"] == []
        assert len(binder.descriptors()) == len(before) + 1
    assert not can_connect((host, 8000))
    assert not can_connect((host, 8001))


def test_a_client_that_is_gone_before_its_answer_takes_no_listener_from_others(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as good:
        good.bind([(host, 8000)], owner="good")[0].close()
        binder.suspend()
        with RawClient(binder.socket_path) as client:
            client.send(request("bind", {"address": host, "port": 8000, "owner": "gone"}))
        binder.resume()
        wait_until(lambda: good.list()[0].owners == ["good"], "only the claim of the good client is left")
    assert can_connect((host, 8000))


def test_a_thousand_clients_that_are_gone_before_their_answers_leave_nothing(binder: Binder, host: str) -> None:
    before = binder.descriptors()
    binder.suspend()
    for port in range(8000, 9000):
        with RawClient(binder.socket_path) as client:
            client.send(request("bind", {"address": host, "port": port}))
    binder.resume()
    with RawClient(binder.socket_path) as other:
        assert other.ask(request("list"))["result"] == []
        assert len(binder.descriptors()) == len(before) + 1


def test_half_a_request_and_then_the_end_is_nothing(binder: Binder, host: str) -> None:
    with RawClient(binder.socket_path) as client:
        client.send(b'{"jsonrpc":"2.0","method":"bind"')
        client.socket.shutdown(socket.SHUT_WR)
        assert client.at_end()
    assert_a_good_client_is_served(binder, host)


def test_a_client_that_says_no_more_still_gets_its_answers(binder: Binder) -> None:
    with RawClient(binder.socket_path) as client:
        client.send(HELLO * 100)
        client.socket.shutdown(socket.SHUT_WR)
        for _ in range(100):
            assert client.reply()["result"]["pid"] == binder.pid
        assert client.at_end()


def test_a_client_that_never_reads_holds_up_nobody_and_is_dropped(start_binder: StartBinder, host: str) -> None:
    binder = start_binder("--request-timeout", "1")
    before = binder.descriptors()
    with RawClient(binder.socket_path) as deaf:
        stuff(deaf, HELLO)
        assert_a_good_client_is_served(binder, host)
        line = binder.wait_for_log("event=timed-out")
        assert 'why="does not read its answer"' in line
        with RawClient(binder.socket_path) as other:
            other.ask(HELLO)
            assert len(binder.descriptors()) == len(before) + 1
        deaf.socket.settimeout(AT_ONCE_S)
        while deaf.receive()[0]:
            pass


def test_what_a_client_that_never_reads_was_given_last_is_taken_back(start_binder: StartBinder, host: str) -> None:
    binder = start_binder("--request-timeout", "1")
    with RawClient(binder.socket_path) as deaf:
        stuff(deaf, HELLO)
        # The binder has this in its buffer or in the client's; either way it is not answered.
        with contextlib.suppress(BlockingIOError):
            deaf.socket.send(request("bind", {"address": host, "port": 8000}))
        binder.wait_for_log("event=timed-out")
        with Client(binder.socket_path) as client:
            assert client.list() == []


def test_a_client_that_reads_slowly_but_in_time_loses_nothing(binder: Binder) -> None:
    count = 20_000
    with RawClient(binder.socket_path) as client:
        writer = threading.Thread(target=client.send, args=(b'{"method":"hello","id":1}\n' * count,))
        writer.start()
        for _ in range(count):
            assert client.reply()["result"]["pid"] == binder.pid
        writer.join()


def test_a_client_that_asks_faster_than_it_is_answered_does_not_fill_the_memory(binder: Binder) -> None:
    # Each request is tiny and its answer short, so that 16 MiB of requests are far more than one turn can answer.
    flood = b'{"method":"x","id":1}\n' * (16 * 1024 * 1024 // 22)
    before = resident_kb(binder.pid)
    highest = before
    with RawClient(binder.socket_path) as client:

        def write() -> None:
            with contextlib.suppress(OSError):
                client.socket.sendall(flood)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            deadline = time.monotonic() + 1
            while writer.is_alive() and time.monotonic() < deadline:
                client.receive()
                highest = max(highest, resident_kb(binder.pid))
        finally:
            client.socket.shutdown(socket.SHUT_RDWR)
            writer.join()
    assert highest - before < 4096, f"{highest - before} kB more than before"


@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_clients_that_say_nothing_hold_up_nobody(start_binder: StartBinder, host: str) -> None:
    binder = start_binder("--request-timeout", "3")
    before = binder.descriptors()
    with contextlib.ExitStack() as silent:
        clients = [silent.enter_context(RawClient(binder.socket_path)) for _ in range(1000)]
        wait_until(lambda: len(binder.descriptors()) >= 1000 + len(before), "all are connected", log=binder.log)
        assert_a_good_client_is_served(binder, host)
        for client in clients:
            assert client.at_end()
    with RawClient(binder.socket_path) as other:
        other.ask(HELLO)
        assert len(binder.descriptors()) == len(before) + 1


def test_a_client_too_many_is_turned_away_with_the_reason(start_binder: StartBinder) -> None:
    binder = start_binder("--max-clients", "2")
    with RawClient(binder.socket_path) as one, RawClient(binder.socket_path) as two:
        one.send(b"{")
        two.send(b"{")
        wait_until(lambda: sum("socket" in what for what in binder.descriptors().values()) >= 4, "both are connected")
        with RawClient(binder.socket_path) as three:
            error = three.reply()["error"]
            assert error["code"] == 10001
            assert error["message"] == ("too many clients: this binder serves 2 at once (--max-clients); try again")
            assert three.at_end()
        binder.wait_for_log("event=turned-away")
        assert one.ask(HELLO[1:])["result"]["pid"] == binder.pid
        assert two.ask(HELLO[1:])["result"]["pid"] == binder.pid


def test_our_client_reports_that_it_was_turned_away(start_binder: StartBinder) -> None:
    binder = start_binder("--max-clients", "1")
    with RawClient(binder.socket_path) as one:
        one.send(b"{")
        binder.suspend()  # so that our request is on its way before the binder closes
        with (
            Client(binder.socket_path) as client,
            later(0.2, binder.resume),
            pytest.raises(RequestError, match="too many clients"),
        ):
            client.hello()


def test_of_quiet_clients_the_one_that_was_quiet_longest_makes_room(start_binder: StartBinder) -> None:
    binder = start_binder("--max-clients", "3")
    with contextlib.ExitStack() as connected:
        first, second, third = (connected.enter_context(RawClient(binder.socket_path)) for _ in range(3))
        for client in (first, second, third, first):  # so that it is the second that was quiet longest
            client.ask(HELLO)
        fourth = connected.enter_context(RawClient(binder.socket_path))
        assert fourth.ask(HELLO)["result"]["pid"] == binder.pid
        assert second.at_end()
        for client in (first, third, fourth):
            assert client.ask(HELLO)["result"]["pid"] == binder.pid
    binder.wait_for_log("event=evicted")


def test_half_a_request_is_dropped_after_its_time_with_a_reason(start_binder: StartBinder) -> None:
    binder = start_binder("--request-timeout", "0.5")
    with RawClient(binder.socket_path) as client:
        started = time.monotonic()
        client.send(b'{"jsonrpc":"2.0",')
        assert client.reply()["error"]["message"] == "Invalid request: incomplete after 0.5 s"
        assert client.at_end()
        assert 0.4 < time.monotonic() - started < AT_ONCE_S
    assert 'why="sent half a request"' in binder.wait_for_log("event=timed-out")


def test_a_request_that_trickles_in_is_dropped_after_the_same_time(start_binder: StartBinder) -> None:
    binder = start_binder("--request-timeout", "0.5")
    with RawClient(binder.socket_path) as client:
        started = time.monotonic()

        def trickle() -> bool:
            try:
                client.send(b" ")
            except (BrokenPipeError, ConnectionResetError):
                return True
            return False

        client.send(b"{")
        wait_until(trickle, "the binder has enough of it")
        assert time.monotonic() - started < AT_ONCE_S
        assert "incomplete after 0.5 s" in client.reply()["error"]["message"]


def test_a_client_between_two_requests_may_take_longer_than_that(start_binder: StartBinder) -> None:
    binder = start_binder("--request-timeout", "0.2")
    with RawClient(binder.socket_path) as patient, RawClient(binder.socket_path) as silent:
        patient.ask(HELLO)
        assert silent.at_end()  # its time is over, and so would be the patient one's
        assert patient.ask(HELLO)["result"]["pid"] == binder.pid


def test_descriptors_that_a_client_sends_are_closed_at_once(binder: Binder) -> None:
    with RawClient(binder.socket_path) as client, open(os.devnull) as null:
        client.ask(HELLO)
        before = binder.descriptors()
        for _ in range(20):
            client.send(HELLO, [null.fileno()] * 50)
            assert client.reply()["result"]["pid"] == binder.pid
        assert binder.descriptors() == before
        client.send(HELLO[:5], [null.fileno()] * 50)
        client.send(HELLO[5:])
        client.reply()
        assert binder.descriptors() == before


def test_more_descriptors_than_the_binder_may_open_cost_nobody_else_anything(
    start_binder: StartBinder, host: str
) -> None:
    binder = start_binder("--max-clients", "8", nofile=(100, 100))
    with RawClient(binder.socket_path) as client, open(os.devnull) as null:
        client.send(HELLO, [null.fileno()] * 250)
        assert "error" in client.reply()
        assert client.at_end()
    assert_a_good_client_is_served(binder, host)


def test_a_binder_without_a_free_descriptor_pauses_and_serves_on(start_binder: StartBinder) -> None:
    # 1 client fits beside the listeners that fit; the limit that the binder works out for itself leaves slack.
    binder = start_binder("--max-clients", "500", nofile=(80, 80))
    with contextlib.ExitStack() as many:
        clients = [many.enter_context(RawClient(binder.socket_path)) for _ in range(100)]
        binder.wait_for_log("event=cannot-accept")
        for client in clients[:50]:
            client.close()
        assert clients[-1].ask(HELLO)["result"]["pid"] == binder.pid


def test_a_client_is_told_when_others_hold_too_many_descriptors_unread(start_binder: StartBinder, host: str) -> None:
    # The kernel counts descriptors that were sent and not yet received, for all of a user's processes, against
    # RLIMIT_NOFILE of the sender, and refuses with ETOOMANYREFS (unix(7)); root is exempt.
    binder = start_binder(
        "--max-clients", "50", "--request-timeout", "1", prefix=without_privileges(), nofile=(300, 300)
    )
    with RawClient(binder.socket_path) as deaf:
        for _ in range(6):
            deaf.send(request("bind", *[{"address": host, "port": 8000}] * 60))
        with Client(binder.socket_path) as client:
            wait_until(lambda: [one.handoffs for one in client.list()] == [360], "all are on their way", log=binder.log)
            with contextlib.suppress(RequestError):
                client.bind([(host, 8001)])[0].close()


def test_bytes_of_every_kind_end_nothing_but_their_own_connection(binder: Binder) -> None:
    good = request("bind", {"address": "127.0.0.1", "port": 0, "name": "ü"})
    with RawClient(binder.socket_path) as witness:
        for at in range(len(good)):
            for byte in (b"\x00", b"\xff", b'"', b"{", b"\n"):
                with RawClient(binder.socket_path) as client:
                    client.send(good[:at] + byte + good[at + 1 :] + b"\n")
                    client.socket.shutdown(socket.SHUT_WR)
                    while client.receive()[0]:
                        pass
        assert witness.ask(HELLO)["result"]["pid"] == binder.pid
