"""Clients that are slow, silent, malicious or gone delay no other client, and leave nothing behind."""

from __future__ import annotations

import array
import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from multibinder import Client, RequestError
from multibinder.binder.peer import Peer
from multibinder.binder.quotas import Limits, Quotas
from tests.conftest import StartBinder
from tests.support import (
    PATIENCE_S,
    Binder,
    RawClient,
    can_connect,
    clean_environment,
    later,
    request,
    require,
    wait_until,
    without_privileges,
)
from tests.support.installation import for_everybody

HELLO = request("hello")
#: The longest wait of a well-behaved client, on a machine that is busy with other tests: less than any timeout of ours.
AT_ONCE_S = 5.0


def assert_a_good_client_is_served(binder: Binder, host: str, port: int = 8999, *, within_s: float = AT_ONCE_S) -> None:
    with Client(binder.socket_path, timeout=within_s) as client:
        with client.bind([(host, port)])[0] as listener:
            assert listener.getsockname() == (host, port)
        client.release([(host, port)])


def send_until_blocked(client: RawClient, text: bytes) -> None:
    """Send without reading until the binder stops reading."""
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
        wait_until(
            lambda: len(binder.descriptors()) == len(before) + 1,
            "the binder has closed the connections",
            log=binder.log,
        )
        assert other.ask(request("list"))["result"] == []


def test_a_client_that_ends_in_the_middle_of_a_request_gets_no_answer(binder: Binder, host: str) -> None:
    with RawClient(binder.socket_path) as client:
        client.send(b'{"jsonrpc":"2.0","method":"bind"')
        client.socket.shutdown(socket.SHUT_WR)
        assert client.at_end()
    assert_a_good_client_is_served(binder, host)


def test_a_half_closed_client_still_gets_its_answers(binder: Binder) -> None:
    with RawClient(binder.socket_path) as client:
        client.send(HELLO * 100)
        client.socket.shutdown(socket.SHUT_WR)
        for _ in range(100):
            assert client.reply()["result"]["pid"] == binder.pid
        assert client.at_end()


def test_a_client_that_never_reads_delays_no_other_and_is_dropped(start_binder: StartBinder, host: str) -> None:
    binder = start_binder("--request-timeout", "1")
    before = binder.descriptors()
    with RawClient(binder.socket_path) as deaf:
        send_until_blocked(deaf, HELLO)
        assert_a_good_client_is_served(binder, host)
        line = binder.wait_for_log("event=timed-out")
        assert 'why="does not read its answer"' in line
        with RawClient(binder.socket_path) as other:
            other.ask(HELLO)
            assert len(binder.descriptors()) == len(before) + 1
        deaf.socket.settimeout(AT_ONCE_S)
        while deaf.receive()[0]:
            pass


def test_an_undelivered_listener_of_a_client_that_never_reads_is_taken_back(
    start_binder: StartBinder, host: str
) -> None:
    binder = start_binder("--request-timeout", "1")
    with RawClient(binder.socket_path) as deaf:
        send_until_blocked(deaf, HELLO)
        # The request is in the buffer of the binder or of the kernel. In both cases it is not answered.
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


def test_a_client_that_asks_faster_than_the_binder_answers_does_not_fill_its_memory(binder: Binder) -> None:
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
def test_a_thousand_silent_clients_delay_no_other(start_binder: StartBinder, host: str) -> None:
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


def test_a_client_above_the_limit_is_turned_away_with_the_reason(start_binder: StartBinder) -> None:
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
        binder.suspend()  # so that our request is sent before the binder closes the connection
        with (
            Client(binder.socket_path) as client,
            later(0.2, binder.resume),
            pytest.raises(RequestError, match="too many clients"),
        ):
            client.hello()


def test_the_longest_idle_client_is_evicted_to_make_room(start_binder: StartBinder) -> None:
    binder = start_binder("--max-clients", "3")
    with contextlib.ExitStack() as connected:
        first, second, third = (connected.enter_context(RawClient(binder.socket_path)) for _ in range(3))
        for client in (first, second, third, first):  # so that the second client is idle longest
            client.ask(HELLO)
        fourth = connected.enter_context(RawClient(binder.socket_path))
        assert fourth.ask(HELLO)["result"]["pid"] == binder.pid
        assert second.at_end()
        for client in (first, third, fourth):
            assert client.ask(HELLO)["result"]["pid"] == binder.pid
    binder.wait_for_log("event=evicted")


def test_an_unfinished_request_times_out_with_a_reason(start_binder: StartBinder) -> None:
    binder = start_binder("--request-timeout", "0.5")
    with RawClient(binder.socket_path) as client:
        started = time.monotonic()
        client.send(b'{"jsonrpc":"2.0",')
        assert client.reply()["error"]["message"] == "Invalid request: incomplete after 0.5 s"
        assert client.at_end()
        assert 0.4 < time.monotonic() - started < AT_ONCE_S
    assert 'why="sent half a request"' in binder.wait_for_log("event=timed-out")


def test_a_request_that_trickles_in_times_out_as_well(start_binder: StartBinder) -> None:
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
        wait_until(trickle, "the binder drops the client")
        assert time.monotonic() - started < AT_ONCE_S
        assert "incomplete after 0.5 s" in client.reply()["error"]["message"]


def test_a_client_may_be_idle_between_requests_for_longer_than_the_request_timeout(start_binder: StartBinder) -> None:
    binder = start_binder("--request-timeout", "0.2")
    with RawClient(binder.socket_path) as patient, RawClient(binder.socket_path) as silent:
        patient.ask(HELLO)
        assert silent.at_end()  # the timeout has passed for both clients
        assert patient.ask(HELLO)["result"]["pid"] == binder.pid


def send_with_descriptors(client: RawClient, message: bytes, rights: list[int]) -> bool:
    """Send a message with descriptors. Return False if the kernel refuses to pass them (SO_PASSRIGHTS, Linux 6.16)."""
    try:
        client.send(message, rights)
    except PermissionError:
        client.send(message)
        return False
    return True


@pytest.mark.parametrize("credentials", [False, True], ids=["", "with credentials"])
def test_descriptors_that_a_client_sends_are_closed_at_once(binder: Binder, credentials: bool) -> None:
    with RawClient(binder.socket_path) as client, open(os.devnull) as null:
        if credentials:
            # With SO_PASSCRED, messages in both directions also have SCM_CREDENTIALS as ancillary data (unix(7)).
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        client.ask(HELLO)
        before = binder.descriptors()
        for _ in range(20):
            send_with_descriptors(client, HELLO, [null.fileno()] * 50)
            assert client.reply()["result"]["pid"] == binder.pid
        assert binder.descriptors() == before
        send_with_descriptors(client, HELLO[:5], [null.fileno()] * 50)
        client.send(HELLO[5:])
        client.reply()
        assert binder.descriptors() == before


def test_credentials_that_a_client_sends_beside_descriptors_change_nothing(binder: Binder) -> None:
    credentials = struct.pack("=iII", os.getpid(), os.geteuid(), os.getegid())
    with RawClient(binder.socket_path) as client, open(os.devnull) as null:
        client.ask(HELLO)
        before = binder.descriptors()
        for rights in ([], [null.fileno()] * 50):
            ancillary: list[tuple[int, int, object]] = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)]
            if rights:
                ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", rights)))
            try:
                client.socket.sendmsg([HELLO], ancillary)  # type: ignore[arg-type]
            except PermissionError:
                assert rights
                continue
            assert client.reply()["result"]["pid"] == binder.pid
        assert binder.descriptors() == before
        client.ask(HELLO)


def test_our_client_gets_its_listener_when_credentials_come_with_it(binder: Binder, host: str) -> None:
    with Client(binder.socket_path) as client:
        connection = client._session._connection
        assert connection is not None
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with client.bind([(host, 8000)])[0] as listener:
            assert listener.getsockname() == (host, 8000)


def test_descriptors_do_not_reach_the_binder_where_the_kernel_can_refuse_them(binder: Binder) -> None:
    near, far = socket.socketpair()
    with near, far, RawClient(binder.socket_path) as client, open(os.devnull) as null:
        try:
            near.getsockopt(socket.SOL_SOCKET, 83)  # SO_PASSRIGHTS, asm-generic/socket.h
        except OSError:
            require("passrights", False, "this kernel has no SO_PASSRIGHTS (Linux 6.16)")
        with pytest.raises(PermissionError):
            client.send(HELLO, [null.fileno()])
        assert client.ask(HELLO)["result"]["pid"] == binder.pid


def test_closing_a_received_socket_does_not_wait_for_its_peer(host: str) -> None:
    near, far = socket.socketpair()
    with near, far, socket.create_server((host, 0)) as server:
        peer = Peer(near, Quotas(Limits()))
        with socket.create_connection(server.getsockname()) as lingering:
            accepted, _ = server.accept()
            with accepted:
                lingering.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while lingering.send(b"x" * 65536):
                        pass
                lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
                socket.send_fds(far, [HELLO], [lingering.fileno()])
                # The last copy is in flight. A blocking close(2) in this process would wait for an hour.
                os.dup2(far.fileno(), lingering.fileno())
                peer.receive()
                assert peer.next_message() == HELLO.strip()


def test_more_descriptors_than_the_binder_may_open_do_not_affect_other_clients(
    start_binder: StartBinder, host: str
) -> None:
    binder = start_binder("--max-clients", "8", nofile=(100, 100))
    with RawClient(binder.socket_path) as client, open(os.devnull) as null:
        if send_with_descriptors(client, HELLO, [null.fileno()] * 250):
            assert "error" in client.reply()
            assert client.at_end()
    assert_a_good_client_is_served(binder, host)


#: What a client has sent when it disconnects: nothing, half a request, a whole one, several; requests whose answer or
#: descriptors it does not read, a request that is refused, nonsense.
STATES = {
    "silent": b"",
    "half a request": HELLO[:9],
    "a request": HELLO,
    "one and a half": HELLO + HELLO[:9],
    "many requests": HELLO * 500,
    "a bind": request("bind", {"address": "127.0.0.1", "port": 0}),
    "a refused bind": request("bind", {"address": "192.0.2.1", "port": 1}),
    "nonsense": b"nonsense",
    "a large half": b'{"x":"' + b"y" * 100_000,
}


@pytest.mark.parametrize("half", [False, True], ids=["closed", "half-closed"])
@pytest.mark.parametrize("state", STATES)
def test_a_client_that_disconnects_in_any_state_leaves_nothing(binder: Binder, state: str, half: bool) -> None:
    before = binder.descriptors()
    for _ in range(20):
        with RawClient(binder.socket_path) as client:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.send(STATES[state])
            if half:
                client.socket.shutdown(socket.SHUT_WR)
                while client.receive()[0]:
                    pass
    with Client(binder.socket_path) as good:
        for status in good.list():
            good.release([(str(status.address).rpartition(":")[0], int(str(status.address).rpartition(":")[2]))])
        wait_until(lambda: len(binder.descriptors()) == len(before) + 1, "nothing is left", log=binder.log)


def test_a_request_may_come_a_byte_at_a_time(binder: Binder, host: str) -> None:
    text = request("bind", {"address": host, "port": 8000})
    with RawClient(binder.socket_path) as slow, RawClient(binder.socket_path) as other:
        slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)
        for byte in text:
            slow.send(bytes([byte]))
            other.ask(HELLO)  # the binder has read the byte when it answers the second of these
            other.ask(HELLO)
        assert slow.reply()["result"]["descriptors"] == 1
        assert len(slow.descriptors) == 1


def connected(binder: Binder) -> RawClient:
    """Return a connection. Retries while the accept queue is full and the kernel returns EAGAIN (unix(7))."""

    def connect() -> RawClient | None:
        with contextlib.suppress(BlockingIOError):
            return RawClient(binder.socket_path)
        return None

    return wait_until(connect, "the binder accepts", log=binder.log)


def test_thousands_of_connections_leave_nothing(binder: Binder, host: str) -> None:
    before = binder.descriptors()
    resident = resident_kb(binder.pid)
    for number in range(2000):
        with connected(binder) as client:
            if number % 3 == 0:
                client.send(HELLO)
    assert_a_good_client_is_served(binder, host)
    wait_until(lambda: len(binder.descriptors()) == len(before), "all are closed", log=binder.log)
    assert resident_kb(binder.pid) - resident < 4096


@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_large_half_sent_requests_do_not_fill_the_memory(start_binder: StartBinder, host: str) -> None:
    binder = start_binder("--max-clients", "1100")
    half = b'{"x":"' + b"y" * 500_000
    before = resident_kb(binder.pid)
    with contextlib.ExitStack() as many:
        for _ in range(1000):
            client = many.enter_context(RawClient(binder.socket_path))
            client.socket.setblocking(False)
            # What the binder does not read stays in the kernel, and is charged to the client.
            with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                sent = client.socket.send(half)
                while sent < len(half):
                    sent += client.socket.send(half[sent:])
            assert (
                resident_kb(binder.pid) - before < 128 * 1024
            )  # the buffers may have the size of a hundred of the largest requests, 50 MiB
        # What the thousand have sent is read before, which takes seconds on a busy machine.
        assert_a_good_client_is_served(binder, host, within_s=PATIENCE_S)


_RACE = """
import socket, sys
from multibinder import Client, RequestError
path, host, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
bound = refused = 0
with Client(path) as client:
    for _ in range(rounds):
        try:
            [listener] = client.bind([(host, 8000)], owner=sys.argv[4])
        except RequestError:
            refused += 1
        else:
            # Our claim has a label that the other process does not use, so that it cannot close this listener.
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), "a socket that does not listen"
            assert listener.getsockname() == (host, 8000)
            listener.close()
            bound += 1
        [outcome] = client.release([(host, 8000)], owner=sys.argv[4])
        assert outcome.outcome in ("closed", "kept"), outcome
print(bound, refused)
"""


def test_release_and_bind_at_the_same_time_never_give_a_dead_socket(binder: Binder, host: str) -> None:
    before = binder.descriptors()
    rounds = 2000
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACE, str(binder.socket_path), host, str(rounds), label],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=clean_environment(),
        )
        for label in ("one", "two")
    ]
    try:
        for racer in racers:
            said, _ = racer.communicate(timeout=120)
            assert racer.returncode == 0, said
            bound, refused = map(int, said.split())
            assert bound + refused == rounds
            assert bound
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
    with Client(binder.socket_path) as client:
        assert client.list() == []
    wait_until(lambda: len(binder.descriptors()) == len(before), "nothing is left", log=binder.log)
    assert not can_connect((host, 8000))


def test_log_lines_that_a_client_can_cause_at_will_are_throttled(binder: Binder) -> None:
    for _ in range(100):
        with RawClient(binder.socket_path) as client:
            client.send(b"nonsense")
            while client.receive()[0]:
                pass
    with RawClient(binder.socket_path) as other:
        other.ask(HELLO)
    assert binder.log_path.read_text().count("event=protocol-error") == 20


def test_a_binder_without_a_free_descriptor_pauses_and_serves_on(start_binder: StartBinder) -> None:
    # Descriptors run out before the limit of clients: the limit that the binder computes itself would prevent that.
    binder = start_binder("--max-clients", "500", nofile=(80, 80))
    with contextlib.ExitStack() as many:
        clients = [many.enter_context(RawClient(binder.socket_path)) for _ in range(100)]
        binder.wait_for_log("event=cannot-accept")
        for client in clients[:50]:
            client.close()
        assert clients[-1].ask(HELLO)["result"]["pid"] == binder.pid


def test_a_client_is_told_when_too_many_unread_descriptors_are_in_flight(start_binder: StartBinder, host: str) -> None:
    # The kernel counts descriptors that were sent and not yet received, for all of a user's processes, against
    # RLIMIT_NOFILE of the sender, and refuses with ETOOMANYREFS (unix(7)); root is exempt.
    binder = start_binder(
        "--max-clients",
        "50",
        "--request-timeout",
        "1",
        prefix=without_privileges(),
        program=for_everybody().program,
        nofile=(300, 300),
    )
    with RawClient(binder.socket_path) as deaf:
        for _ in range(6):
            deaf.send(request("bind", *[{"address": host, "port": 8000}] * 60))
        with Client(binder.socket_path) as client:
            wait_until(
                lambda: [one.handoffs for one in client.list()] == [360],
                "all descriptors are in flight",
                log=binder.log,
            )
            with contextlib.suppress(RequestError):
                client.bind([(host, 8001)])[0].close()


def test_arbitrary_bytes_end_only_their_own_connection(binder: Binder) -> None:
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
