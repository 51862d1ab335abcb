"""The quotas of one user and of all users: a refusal is clear, and does not affect other users."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from multibinder import Client
from tests.conftest import Meet, StartBinder
from tests.support import Binder, Json, RawClient, Stranger, descriptors, request, wait_until

HELLO = request("hello")
HALF = HELLO[:20]
REST = HELLO[20:]
LIMIT_REACHED = 10001
#: Two users that exist on no system.
ONE, OTHER = 64001, 64002


@pytest.fixture
def hostile(meet: Meet) -> Stranger:
    return meet(ONE)


@pytest.fixture
def good(meet: Meet) -> Stranger:
    return meet(OTHER)


def start(start_binder: StartBinder, *options: str) -> Binder:
    return start_binder("--mode", "0666", *options)


def bind(host: str, *ports: int) -> bytes:
    return request("bind", *[{"address": host, "port": port} for port in ports])


def assert_refused(reply: Json, limit: str, flag: str) -> None:
    error = reply["error"]
    assert error["code"] == LIMIT_REACHED
    assert error["data"] == {"limit": limit}
    assert f"{flag})" in error["message"]


def assert_served(client: RawClient, binder: Binder) -> None:
    assert client.ask(HELLO)["result"]["pid"] == binder.pid


def begin_a_request(client: RawClient, binder: Binder) -> None:
    """Send half a request. The binder has read it when it answers the whole request in the same message."""
    assert client.ask(HELLO + HALF)["result"]["pid"] == binder.pid


def refusals(binder: Binder) -> dict[str, int]:
    with Client(binder.socket_path) as client:
        return dict(client.status().counters.refusals)


def in_flight(binder: Binder) -> int:
    with Client(binder.socket_path) as client:
        return client.status().descriptors_in_flight


def bound(binder: Binder) -> list[str]:
    with Client(binder.socket_path) as client:
        return sorted(str(status.address) for status in client.list())


@contextlib.contextmanager
def nothing_stays_open(binder: Binder) -> Iterator[None]:
    """Assert that the binder has closed all descriptors of the block's clients, except listeners."""

    def others() -> int:
        # The binder accepts clients in order. When it answers this one, it has accepted all before it.
        with Client(binder.socket_path) as client:
            listeners = len(client.list())
            return len(descriptors(binder.pid)) - 1 - listeners

    before = others()
    yield
    wait_until(lambda: others() == before, "the binder has closed what it opened for its clients", log=binder.log)


def test_a_user_at_its_limit_of_listeners_is_refused_and_others_bind(
    start_binder: StartBinder, hostile: Stranger, good: Stranger, host: str
) -> None:
    binder = start(start_binder, "--max-listeners-per-uid", "2")
    client = hostile.connect(binder.socket_path)
    assert "result" in client.ask(bind(host, 8000, 8001))
    assert_refused(client.ask(bind(host, 8002)), "listeners_per_uid", "--max-listeners-per-uid")
    assert_refused(client.ask(bind(host, 8000, 8003)), "listeners_per_uid", "--max-listeners-per-uid")
    assert "result" in client.ask(bind(host, 8000))  # the user has a claim to this one already
    assert "result" in good.connect(binder.socket_path).ask(bind(host, 8004, 8005))
    with RawClient(binder.socket_path) as root:
        assert "result" in root.ask(bind(host, 8006, 8007, 8008))
    assert bound(binder) == [f"{host}:{port}" for port in (8000, 8001, 8004, 8005, 8006, 8007, 8008)]
    assert refusals(binder)["listeners_per_uid"] == 2
    assert client.ask(request("release", {"address": host, "port": 8001}))["result"][0]["outcome"] == "closed"
    assert "result" in client.ask(bind(host, 8002))


def test_a_shared_listener_counts_for_every_user_that_binds_it(
    start_binder: StartBinder, hostile: Stranger, good: Stranger, host: str
) -> None:
    binder = start(start_binder, "--max-listeners-per-uid", "1")
    assert "result" in good.connect(binder.socket_path).ask(bind(host, 8000))
    client = hostile.connect(binder.socket_path)
    assert "result" in client.ask(bind(host, 8000))
    assert_refused(client.ask(bind(host, 8001)), "listeners_per_uid", "--max-listeners-per-uid")


def test_a_full_binder_still_hands_over_what_it_holds(
    start_binder: StartBinder, hostile: Stranger, good: Stranger, host: str
) -> None:
    binder = start(start_binder, "--max-listeners", "2")
    client = hostile.connect(binder.socket_path)
    assert "result" in client.ask(bind(host, 8000, 8001))
    for other in (good.connect(binder.socket_path), RawClient(binder.socket_path)):
        with other:
            assert_refused(other.ask(bind(host, 8002)), "listeners", "--max-listeners")
            assert "result" in other.ask(bind(host, 8000))
    assert refusals(binder)["listeners"] == 2


def test_a_user_at_its_limit_of_clients_is_turned_away_and_others_are_served(
    start_binder: StartBinder, hostile: Stranger, good: Stranger
) -> None:
    binder = start(start_binder, "--max-clients-per-uid", "3")
    with nothing_stays_open(binder):
        busy = [hostile.connect(binder.socket_path) for _ in range(3)]
        for client in busy:
            begin_a_request(client, binder)
        with hostile.connect(binder.socket_path) as fourth:
            error = fourth.reply()["error"]
            assert (error["code"], error["data"]) == (LIMIT_REACHED, {"limit": "clients_per_uid"})
            assert error["message"] == (
                f"too many clients: uid {ONE} has 3 clients, its limit (--max-clients-per-uid); try again"
            )
            assert fourth.at_end()
        with good.connect(binder.socket_path) as client:
            assert_served(client, binder)
        assert refusals(binder) == {"clients_per_uid": 1}
        for client in busy:  # the clients of other users are unaffected
            assert client.ask(REST)["result"]["pid"] == binder.pid
            client.close()
    assert f"uid={ONE}" in binder.wait_for_log("event=turned-away")


def test_a_user_at_its_limit_of_clients_evicts_only_its_own_idle_ones(
    start_binder: StartBinder, hostile: Stranger, good: Stranger
) -> None:
    binder = start(start_binder, "--max-clients-per-uid", "2")
    quiet_good, quiet_root = good.connect(binder.socket_path), RawClient(binder.socket_path)
    with quiet_root:
        assert_served(quiet_good, binder)  # idle for longer than the clients of the other user
        assert_served(quiet_root, binder)
        quiet, busy = hostile.connect(binder.socket_path), hostile.connect(binder.socket_path)
        assert_served(quiet, binder)
        begin_a_request(busy, binder)
        third = hostile.connect(binder.socket_path)
        assert_served(third, binder)
        assert quiet.at_end()
        assert busy.ask(REST)["result"]["pid"] == binder.pid
        assert_served(quiet_good, binder)
        assert_served(quiet_root, binder)
    with Client(binder.socket_path) as client:
        counters = client.status().counters
        assert (counters.evictions, counters.refusals) == (1, {})


def test_a_full_binder_turns_away_the_user_that_filled_it(start_binder: StartBinder, hostile: Stranger) -> None:
    binder = start(start_binder, "--max-clients", "3")
    busy = [hostile.connect(binder.socket_path) for _ in range(3)]
    for client in busy:
        begin_a_request(client, binder)
    with hostile.connect(binder.socket_path) as fourth:
        error = fourth.reply()["error"]
        assert (error["code"], error["data"]) == (LIMIT_REACHED, {"limit": "clients"})
        assert "--max-clients)" in error["message"]
    for client in busy:
        assert client.ask(REST)["result"]["pid"] == binder.pid


@pytest.mark.parametrize("who", ["root", "another user"])
def test_other_users_can_connect_when_one_user_has_filled_the_binder(
    start_binder: StartBinder, hostile: Stranger, good: Stranger, who: str
) -> None:
    binder = start(start_binder, "--max-clients", "4")
    busy = [hostile.connect(binder.socket_path) for _ in range(4)]
    for client in busy:
        begin_a_request(client, binder)
    with RawClient(binder.socket_path) if who == "root" else good.connect(binder.socket_path) as newcomer:
        assert_served(newcomer, binder)
        error = busy[0].reply()["error"]
        assert (error["code"], error["data"]) == (LIMIT_REACHED, {"limit": "clients"})
        assert busy[0].at_end()
        for client in busy[1:]:
            assert client.ask(REST)["result"]["pid"] == binder.pid


def test_root_can_connect_when_clients_that_do_not_read_fill_the_binder(
    start_binder: StartBinder, hostile: Stranger, good: Stranger, host: str
) -> None:
    binder = start(start_binder, "--max-clients", "3")
    for port in (8000, 8001):
        hostile.connect(binder.socket_path).send(bind(host, port))
    good.connect(binder.socket_path).send(bind(host, 8002))
    for port in (8000, 8001, 8002):
        binder.wait_for_log(f"event=bound address={host}:{port}")
    with RawClient(binder.socket_path) as root:
        assert_served(root, binder)


def test_a_user_above_its_rate_is_refused_and_others_are_answered(
    start_binder: StartBinder, hostile: Stranger, good: Stranger
) -> None:
    binder = start(start_binder, "--max-rate-per-uid", "5")
    client = hostile.connect(binder.socket_path)
    client.send(HELLO * 50)
    replies = [client.reply() for _ in range(10)]
    assert all("result" in reply for reply in replies)  # a burst: two seconds' worth at once
    while "result" in (reply := client.reply()):
        pass
    assert_refused(
        reply | {"error": {**reply["error"], "message": reply["error"]["message"].split(";")[0]}},
        "rate_per_uid",
        "--max-rate-per-uid",
    )
    assert reply["id"] == 1
    other = good.connect(binder.socket_path)
    for _ in range(8):
        assert_served(other, binder)
    with RawClient(binder.socket_path) as root:
        root.send(HELLO * 100)
        for _ in range(100):
            assert root.reply()["result"]["pid"] == binder.pid
    assert refusals(binder)["rate_per_uid"] >= 1


def test_a_user_that_never_stops_asking_is_answered_at_its_rate(start_binder: StartBinder, hostile: Stranger) -> None:
    binder = start(start_binder, "--max-rate-per-uid", "20")
    clients = [hostile.connect(binder.socket_path) for _ in range(20)]
    for client in clients:
        client.send(HELLO * 2000)
    refused = answered_since = 0

    def hammers_and_is_heard() -> bool:
        nonlocal refused, answered_since
        for client in clients:
            if "error" in client.reply():
                refused += 1
            elif refused > 200:  # far more than its rate allows in this time
                answered_since += 1
        return answered_since > 10

    wait_until(hammers_and_is_heard, "requests are answered among the refused ones")


def test_a_large_request_counts_as_several(start_binder: StartBinder, hostile: Stranger) -> None:
    binder = start(start_binder, "--max-rate-per-uid", "50")
    client = hostile.connect(binder.socket_path)
    large = request("hello", {"x": "y" * 60_000})
    assert "result" in client.ask(large)  # more than the whole burst of 100, but a single request is always allowed
    assert client.ask(HELLO)["error"]["data"] == {"limit": "rate_per_uid"}


def test_a_binder_above_its_total_rate_still_answers_root(
    start_binder: StartBinder, hostile: Stranger, good: Stranger
) -> None:
    binder = start(start_binder, "--max-rate", "5")
    client = hostile.connect(binder.socket_path)
    client.send(HELLO * 50)
    while "result" in (reply := client.reply()):
        pass
    assert reply["error"]["code"] == LIMIT_REACHED
    assert reply["error"]["data"] == {"limit": "rate"}
    assert "(--max-rate)" in reply["error"]["message"]
    with RawClient(binder.socket_path) as root:
        for _ in range(50):
            assert_served(root, binder)


def test_refused_requests_of_a_user_do_not_use_up_the_total_rate(
    start_binder: StartBinder, hostile: Stranger, good: Stranger
) -> None:
    binder = start(start_binder, "--max-rate-per-uid", "5", "--max-rate", "30")
    clients = [hostile.connect(binder.socket_path) for _ in range(40)]
    for client in clients:
        client.send(HELLO * 3)
    counted = sum("error" in client.reply() for client in clients for _ in range(3))
    assert counted > 70  # more requests than the burst of all users together
    other = good.connect(binder.socket_path)
    for _ in range(9):
        assert_served(other, binder)


def test_unread_descriptors_are_limited_for_each_user(
    start_binder: StartBinder, hostile: Stranger, good: Stranger, host: str
) -> None:
    binder = start(start_binder, "--max-in-flight-per-uid", "4")
    with nothing_stays_open(binder):
        deaf, asking = hostile.connect(binder.socket_path), hostile.connect(binder.socket_path)
        deaf.send(bind(host, 8000, 8001, 8002))
        wait_until(lambda: in_flight(binder) == 3, "the descriptors are in flight", log=binder.log)
        refused = asking.ask(bind(host, 8003, 8004))["error"]
        assert (refused["code"], refused["data"]) == (LIMIT_REACHED, {"limit": "in_flight_per_uid"})
        assert "(--max-in-flight-per-uid)" in refused["message"]
        assert bound(binder) == [f"{host}:{port}" for port in (8000, 8001, 8002)]  # no listener of the refused request
        with good.connect(binder.socket_path) as other:
            assert "result" in other.ask(bind(host, 8003, 8004))
        with RawClient(binder.socket_path) as root:
            assert "result" in root.ask(bind(host, *range(8005, 8015)))
        deaf.reply()
        assert len(deaf.descriptors) == 3
        assert "result" in asking.ask(bind(host, 8003, 8004))
        assert refusals(binder) == {"in_flight_per_uid": 1}
        deaf.close()
        asking.close()


@pytest.mark.parametrize("end", ["half-closed", "reset by a protocol error"])
def test_descriptors_of_a_finished_client_count_until_it_reads_them(
    start_binder: StartBinder, hostile: Stranger, host: str, end: str
) -> None:
    binder = start(start_binder, "--max-in-flight-per-uid", "3")
    with nothing_stays_open(binder):
        deaf, asking = hostile.connect(binder.socket_path), hostile.connect(binder.socket_path)
        deaf.send(bind(host, 8000, 8001, 8002))
        wait_until(lambda: in_flight(binder) == 3, "the descriptors are in flight", log=binder.log)
        if end == "half-closed":
            deaf.socket.shutdown(socket.SHUT_WR)
        else:
            deaf.send(b"nonsense")
            binder.wait_for_log("event=protocol-error")
        # After this answer, the binder has handled the end of the other client.
        assert_served(asking, binder)
        for _ in range(3):
            assert asking.ask(bind(host, 8003))["error"]["data"] == {"limit": "in_flight_per_uid"}
        assert in_flight(binder) == 3
        assert "result" in deaf.reply()
        assert len(deaf.descriptors) == 3
        while deaf.receive()[0]:
            pass
        assert "result" in asking.ask(bind(host, 8003))
        deaf.close()
        asking.close()


def test_descriptors_of_a_client_that_disconnects_no_longer_count(
    start_binder: StartBinder, hostile: Stranger, host: str
) -> None:
    binder = start(start_binder, "--max-in-flight-per-uid", "3")
    with nothing_stays_open(binder):
        asking = hostile.connect(binder.socket_path)
        for _ in range(20):
            deaf = hostile.connect(binder.socket_path)
            deaf.send(bind(host, 8000, 8001, 8002))
            wait_until(lambda: in_flight(binder) == 3, "the descriptors are in flight", log=binder.log)
            assert asking.ask(bind(host, 8003))["error"]["data"] == {"limit": "in_flight_per_uid"}
            deaf.close()
            assert "result" in asking.ask(bind(host, 8003))
            while len(asking.descriptors) < 1:
                asking.receive()
        asking.close()
    assert in_flight(binder) == 0


def test_a_client_with_descriptors_in_flight_is_not_evicted(
    start_binder: StartBinder, hostile: Stranger, host: str
) -> None:
    """Otherwise a user that reconnects could have any number of descriptors in flight."""
    binder = start(start_binder, "--max-clients-per-uid", "2", "--max-in-flight-per-uid", "3")
    deaf = hostile.connect(binder.socket_path)
    deaf.send(bind(host, 8000, 8001, 8002))
    wait_until(lambda: in_flight(binder) == 3, "the descriptors are in flight", log=binder.log)
    second = hostile.connect(binder.socket_path)
    assert_served(second, binder)
    third = hostile.connect(binder.socket_path)
    assert third.ask(bind(host, 8003))["error"]["data"] == {"limit": "in_flight_per_uid"}
    assert second.at_end()
    assert in_flight(binder) == 3


def test_a_single_batch_may_exceed_the_limit_of_descriptors_in_flight(
    start_binder: StartBinder, hostile: Stranger, host: str
) -> None:
    binder = start(start_binder, "--max-in-flight-per-uid", "3", "--max-in-flight", "3")
    client = hostile.connect(binder.socket_path)
    for _ in range(2):
        client.send(bind(host, *range(8000, 8300)))
        assert client.reply()["result"]["descriptors"] == 300
        assert client.reply()["method"] == "descriptors"
    assert len(client.descriptors) == 600


def test_unread_descriptors_are_limited_in_total(
    start_binder: StartBinder, hostile: Stranger, good: Stranger, host: str
) -> None:
    binder = start(start_binder, "--max-in-flight", "3")
    deaf = hostile.connect(binder.socket_path)
    deaf.send(bind(host, 8000, 8001, 8002))
    wait_until(lambda: in_flight(binder) == 3, "the descriptors are in flight", log=binder.log)
    other = good.connect(binder.socket_path)
    refused = other.ask(bind(host, 8003))["error"]
    assert (refused["code"], refused["data"]) == (LIMIT_REACHED, {"limit": "in_flight"})
    assert "(--max-in-flight)" in refused["message"]
    deaf.close()
    assert "result" in other.ask(bind(host, 8003))
    assert refusals(binder) == {"in_flight": 1}


def test_unfinished_requests_of_one_user_are_limited_and_others_finish_theirs(
    start_binder: StartBinder, hostile: Stranger, good: Stranger
) -> None:
    binder = start(start_binder, "--max-request", "1024")  # the limit is sixteen unfinished requests for each user
    other = good.connect(binder.socket_path)
    other.send(HALF)
    half = b'{"x":"' + b"y" * 994
    with nothing_stays_open(binder):
        clients = [hostile.connect(binder.socket_path) for _ in range(17)]
        for client in clients[:16]:
            client.send(half)
        clients[16].send(half)
        refused = wait_for_refusal(clients)
        assert (refused["code"], refused["data"]) == (LIMIT_REACHED, {"limit": "buffered_per_uid"})
        assert "(--max-request)" in refused["message"]
        assert refusals(binder) == {"buffered_per_uid": 1}
        assert other.ask(REST)["result"]["pid"] == binder.pid
        with RawClient(binder.socket_path) as root:
            root.send(HALF)
            assert root.ask(REST)["result"]["pid"] == binder.pid
        for client in clients:
            client.close()
    fresh = hostile.connect(binder.socket_path)
    fresh.send(HALF)
    assert fresh.ask(REST)["result"]["pid"] == binder.pid


def wait_for_refusal(clients: list[RawClient]) -> Json:
    """Wait until one of the clients is refused, and return the error."""

    def told() -> Json | None:
        for client in clients:
            with contextlib.suppress(BlockingIOError):
                client.socket.setblocking(False)
                try:
                    error: Json = client.reply()["error"]
                finally:
                    client.socket.settimeout(20)
                return error
        return None

    return wait_until(told, "one of the clients is refused")


def test_at_the_total_limit_of_unfinished_requests_the_user_with_most_is_refused(
    start_binder: StartBinder, meet: Meet
) -> None:
    binder = start(start_binder, "--max-request", "1024")  # the limit is a hundred unfinished requests in total
    half = b'{"x":"' + b"y" * 994
    small = meet(OTHER).connect(binder.socket_path)
    small.send(HALF)
    clients = []
    for uid in range(ONE + 10, ONE + 17):
        stranger = meet(uid)
        for _ in range(15):
            clients.append(stranger.connect(binder.socket_path))
            clients[-1].send(half)
    refused = wait_for_refusal(clients)
    assert (refused["code"], refused["data"]) == (LIMIT_REACHED, {"limit": "buffered"})
    assert "(--max-request)" in refused["message"]
    assert small.ask(REST)["result"]["pid"] == binder.pid
    assert refusals(binder)["buffered"] >= 1


def test_a_user_at_every_limit_at_once_leaves_nothing_behind(
    start_binder: StartBinder, hostile: Stranger, good: Stranger, host: str
) -> None:
    binder = start(
        start_binder,
        *("--max-clients-per-uid", "8", "--max-rate-per-uid", "200", "--max-in-flight-per-uid", "16"),
        *("--max-listeners-per-uid", "8"),
    )
    stop = threading.Event()

    def attack() -> None:
        port = 0
        while not stop.is_set():
            with contextlib.suppress(OSError, AssertionError), hostile.connect(binder.socket_path) as client:
                client.socket.setblocking(False)
                port += 1
                client.send(bind(host, 9000 + port % 16, 9100 + port % 16) * 4 + HALF)

    with nothing_stays_open(binder):
        attacker = threading.Thread(target=attack)
        attacker.start()
        try:
            other = good.connect(binder.socket_path)
            for round_ in range(50):
                assert "result" in other.ask(bind(host, 8000 + round_ % 4))
                assert_served(other, binder)
            wait_until(lambda: refusals(binder), "a limit is reached", log=binder.log)
            assert_served(other, binder)
        finally:
            stop.set()
            attacker.join()
        other.close()
