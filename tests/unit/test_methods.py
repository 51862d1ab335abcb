"""Methods answer requests without a daemon, on real sockets. Collaborators answer when the test tells them to."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence

import pytest

from multibinder.binder.address_patterns import parse_pattern
from multibinder.binder.address_search import TellHolders
from multibinder.binder.adopt import Adoption
from multibinder.binder.answer import Answer, Pieces, turn_down
from multibinder.binder.caller import Caller
from multibinder.binder.counters import RequestCounters
from multibinder.binder.keeper_link import HasDescriptor
from multibinder.binder.keeper_waiters import OnConfirmed
from multibinder.binder.listener import Listener
from multibinder.binder.listings import Listings
from multibinder.binder.loop import Loop
from multibinder.binder.methods import Methods, OnRehearsed
from multibinder.binder.owner import Owner
from multibinder.binder.policy import Policy, Rule
from multibinder.binder.policy_in_force import PolicyInForce
from multibinder.binder.quotas import Limits, Quotas
from multibinder.binder.slices import Slices
from multibinder.wire.addresses import Address
from multibinder.wire.messages import INTERNAL_ERROR, LIMIT_REACHED, METHOD_NOT_FOUND, NOT_ALLOWED, ListenerSpec
from tests.support import Json
from tests.support.loops import run_until
from tests.support.stores import new_store


class Surroundings:
    """The collaborators of Methods beside the store. They record requests, and answer when the test tells them to."""

    def __init__(self) -> None:
        self.stored: list[tuple[Sequence[tuple[str, HasDescriptor]], OnConfirmed]] = []
        self.looks: list[tuple[bool, Callable[[Pieces | None], None]]] = []
        self.upgrades: list[OnRehearsed] = []
        self.searches: list[tuple[Address, int, TellHolders]] = []
        self.is_throttled = False

    def keep(self, descriptors: Sequence[tuple[str, HasDescriptor]], confirmed: OnConfirmed, /) -> None:
        self.stored.append((descriptors, confirmed))

    def status(self, caller: Caller, tell: Callable[[Pieces | None], None], /, *, fresh: bool) -> None:
        self.looks.append((fresh, tell))

    def begin(self, address: Address, uid: int, tell: TellHolders, netns_path: str, /) -> bool:
        self.searches.append((address, uid, tell))
        return not self.is_throttled

    def upgrade(self, on_rehearsed: OnRehearsed, /) -> None:
        self.upgrades.append(on_rehearsed)


class Bench:
    """Methods on a new store, with the answers that came later than their requests."""

    def __init__(self, caller: Caller) -> None:
        self.store = new_store()
        self.surroundings = Surroundings()
        self.policy = PolicyInForce(None)
        self.counters = RequestCounters()
        self.caller = caller
        self.later: list[Answer] = []
        self.loop = Loop()
        slices = Slices(self.loop)
        quotas = Quotas(Limits())
        self.methods = Methods(
            self.store,
            "1.2.3",
            policy=self.policy,
            counters=self.counters,
            status_source=self.surroundings,
            listings=Listings(slices, quotas, self.store, self.policy),
            search=self.surroundings,
            upgrader=self.surroundings,
            keeper=self.surroundings,
            run=lambda steps, uid: slices.run(steps, quotas.user(uid)),
            adoption=Adoption(self.store, self.policy, self.surroundings),
        )

    def ask(self, method: str, *params: Json) -> Answer | None:
        text = json.dumps({"jsonrpc": "2.0", "method": method, "id": "1", "params": params}).encode()
        return self.methods.answer(text, self.caller, self.later.append)

    def list(self) -> Answer | None:
        """Ask for ``list``, and return the answer, which comes in a later turn of the loop."""
        if (refusal := self.ask("list")) is not None:
            return refusal
        run_until(self.loop, lambda: bool(self.later))
        return self.later.pop()


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def client(connection: tuple[socket.socket, socket.socket]) -> socket.socket:
    return connection[1]


@pytest.fixture
def bench(connection: tuple[socket.socket, socket.socket]) -> Iterator[Bench]:
    bench = Bench(Caller(connection[0]))
    yield bench
    bench.store.close()
    bench.loop.close()


def said(answer: Answer | None) -> Json:
    assert answer is not None
    reply: Json = json.loads(answer.parts[0][0])
    return reply


def local(port: int = 0) -> Json:
    return {"address": "127.0.0.1", "port": port}


def test_a_bind_is_answered_after_the_keeper_has_the_listener(bench: Bench) -> None:
    assert bench.ask("bind", local()) is None
    [(descriptors, confirmed)] = bench.surroundings.stored
    [listener] = bench.store.listeners()
    assert descriptors == [(listener.kept_name, listener.socket)]
    assert not bench.later
    confirmed([listener.kept_name])
    [answer] = bench.later
    assert "warning" not in said(answer)["result"]["listeners"][0]
    assert answer.parts[0][1] == [listener.socket.fileno()]
    assert listener.kept
    assert bench.ask("bind", local(listener.address.sockaddr[1])) is not None, "the listener is kept already"


def test_a_bind_that_the_keeper_could_not_store_is_answered_with_a_warning(bench: Bench) -> None:
    bench.ask("bind", local())
    bench.surroundings.stored[0][1]([])
    assert "would not survive a crash" in said(bench.later[0])["result"]["listeners"][0]["warning"]


def test_a_listener_that_was_released_before_it_was_kept_is_not_handed_over(bench: Bench) -> None:
    bench.ask("bind", local())
    [listener] = bench.store.listeners()
    bench.ask("release", local(listener.address.sockaddr[1]))
    bench.surroundings.stored[0][1]([])
    assert "released by its owner before" in said(bench.later[0])["error"]["message"]
    assert bench.later[0].parts[0][1] == ()


@pytest.mark.parametrize("method", ["bind", "check"])
def test_a_refusal_of_an_address_in_use_waits_for_the_name_of_its_holder(bench: Bench, method: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        wanted = local(other.getsockname()[1])
        assert bench.ask(method, wanted) is None
        [(address, uid, tell)] = bench.surroundings.searches
        assert (str(address), uid) == (f"127.0.0.1:{wanted['port']}", os.geteuid())
        assert bench.counters.totals.refusals == {}
        tell("nginx (pid 812)")
        assert said(bench.later[0])["error"]["message"].endswith(
            "in use, by nginx (pid 812); take it over with 'multibinder adopt "
            f"127.0.0.1:{wanted['port']}', stop it, or choose another port"
        )
        assert bench.counters.totals.refusals == {"bind": 1}
        # While searches for this user are throttled, the answer comes at once.
        bench.surroundings.is_throttled = True
        assert "find who has it ('ss -ltnp', as root)" in said(bench.ask(method, wanted))["error"]["message"]


def test_hello_tells_the_client_which_user_it_is(bench: Bench) -> None:
    assert said(bench.ask("hello"))["result"]["uid"] == os.geteuid()


def test_a_status_is_answered_after_the_look_and_its_client_may_take_the_last_one(bench: Bench) -> None:
    assert bench.ask("status") is None
    assert bench.ask("status", {"fresh": False}) is None
    assert [fresh for fresh, _ in bench.surroundings.looks] == [True, False]
    bench.surroundings.looks[0][1]((b'{"listeners":', b"[]", b"}"))
    assert said(bench.later[0])["result"] == {"listeners": []}
    bench.surroundings.looks[1][1](None)
    assert said(bench.later[1])["error"]["code"] == INTERNAL_ERROR


def test_an_upgrade_is_answered_when_the_rehearsal_has_ended(bench: Bench) -> None:
    assert bench.ask("upgrade") is None
    bench.ask("upgrade")
    bench.surroundings.upgrades[0]("1.3.0", "")
    bench.surroundings.upgrades[1](None, "it does not start")
    assert said(bench.later[0])["result"] == {"before": "1.2.3", "after": "1.3.0"}
    assert said(bench.later[1])["error"]["message"] == (
        "Could not upgrade: it does not start; the running binder goes on"
    )


def test_a_new_policy_decides_from_the_next_request_on(bench: Bench) -> None:
    assert "result" in said(bench.list())
    # The binder has another user than the caller, so that the caller has no right as the binder's own user.
    bench.caller.uid = os.geteuid() + 4242
    assert "result" in said(bench.list())
    bench.policy.replace(Policy("/etc/policy.toml", (), os.geteuid()))
    assert said(bench.list())["error"]["code"] == NOT_ALLOWED
    bench.policy.replace(None)
    assert "result" in said(bench.list())
    assert bench.counters.totals.refusals == {"policy": 1}


def test_an_internal_error_fails_only_one_request(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Listener]:
        raise ZeroDivisionError("of no use")

    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "listeners", broken)
        assert said(bench.list())["error"]["code"] == INTERNAL_ERROR
    assert "result" in said(bench.list())
    assert bench.counters.totals.refusals == {"internal": 1}


def test_requests_and_refusals_are_counted(bench: Bench) -> None:
    bench.ask("hello")
    bench.ask("check", local(), local())
    assert said(bench.ask("check", {"address": "nowhere", "port": 1}))["error"]["message"].startswith("Invalid params:")
    assert said(bench.ask("nonsense"))["error"]["code"] == METHOD_NOT_FOUND
    bench.surroundings.is_throttled = True
    with socket.create_server(("127.0.0.1", 0)) as other:
        bench.ask("bind", local(other.getsockname()[1]))
    totals = bench.counters.totals
    assert totals.requests == {"hello": 1, "check": 2, "other": 1, "bind": 1}
    assert totals.refusals == {"invalid": 2, "bind": 1}
    assert totals.handoffs == 0
    assert sum(totals.request_buckets) == 4, "an unknown method has no duration"


def test_a_throttled_request_is_answered_with_its_id() -> None:
    answer = turn_down(b'{"jsonrpc":"2.0","method":"bind","id":"7","params":[]}', "rate", "too many")
    assert said(answer) == {
        "jsonrpc": "2.0",
        "id": "7",
        "error": {"code": LIMIT_REACHED, "message": "Not now: too many; try again later", "data": {"limit": "rate"}},
    }
    assert said(turn_down(b"{", "rate", "too many"))["id"] is None


def many() -> list[Json]:
    """Return 90 addresses that tests in other processes do not use."""
    network = f"127.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
    return [{"address": f"{network}.{number}", "port": 8000} for number in range(1, 91)]


def ask_long(bench: Bench, method: str, params: list[Json]) -> Json:
    """Ask about many listeners. Return the answer, which comes after several turns of the loop."""
    before = bench.loop.turn
    assert bench.ask(method, *params) is None
    run_until(bench.loop, lambda: bool(bench.later) or bool(bench.surroundings.stored))
    for descriptors, confirmed in bench.surroundings.stored:
        confirmed([name for name, _ in descriptors])
    bench.surroundings.stored.clear()
    assert bench.loop.turn > before, "other clients are served meanwhile"
    answer = bench.later.pop()
    return said(answer)


def test_a_request_about_many_listeners_is_answered_in_slices(bench: Bench) -> None:
    params = many()
    assert ask_long(bench, "check", params)["result"] is True
    assert len(bench.store) == 0
    bound = ask_long(bench, "bind", params)["result"]
    assert [each["address"] for each in bound["listeners"]] == [f"{each['address']}:{each['port']}" for each in params]
    assert {each["outcome"] for each in ask_long(bench, "release", params)["result"]} == {"closed"}
    assert len(bench.store) == 0


def test_of_many_listeners_of_which_the_last_is_refused_none_is_bound(bench: Bench) -> None:
    params = many()
    with socket.socket() as taken:
        taken.bind((params[-1]["address"], 8000))
        taken.listen()
        bench.surroundings.is_throttled = True  # no search for who has it
        for method in ("check", "bind"):
            error = ask_long(bench, method, params)["error"]
            assert params[-1]["address"] in error["message"]
            assert len(bench.store) == 0
    assert "result" in ask_long(bench, "bind", params), "nothing is left behind"


def test_of_many_listeners_none_is_bound_if_the_policy_denies_one(bench: Bench) -> None:
    params = many()
    denied = Rule(1, "", False, frozenset({"bind"}), addresses=(parse_pattern(f"{params[-1]['address']}:*"),))
    bench.policy.replace(Policy("/etc/policy.toml", (denied,), os.geteuid()))
    assert ask_long(bench, "bind", params)["error"]["code"] == NOT_ALLOWED
    assert len(bench.store) == 0


def test_what_the_policy_allowed_for_one_listener_is_not_done_to_another(bench: Bench) -> None:
    # Between two steps of a release the listener is closed, and another user's is bound at its address.
    params = many()
    ask_long(bench, "bind", params)
    assert bench.ask("release", *params) is None
    last = bench.store.listeners()[-1]
    deny = Rule(1, "", False, frozenset({"release"}))
    run_until(bench.loop, lambda: len(bench.store) < 90)  # the policy has decided about all of them
    bench.store.close_orphan(last)
    bench.store.bind([ListenerSpec(last.address)], [Owner("other", os.geteuid())])
    bench.policy.replace(Policy("/etc/policy.toml", (deny,), os.geteuid()))
    run_until(bench.loop, lambda: bool(bench.later))
    assert said(bench.later.pop())["error"]["code"] == NOT_ALLOWED
    assert [str(each.address) for each in bench.store.listeners()] == [str(last.address)]


def test_a_long_request_of_a_client_that_has_gone_is_not_begun(bench: Bench, client: socket.socket) -> None:
    assert bench.ask("bind", *many()) is None
    client.close()
    run_until(bench.loop, lambda: bool(bench.later))
    assert "gone" in said(bench.later[0])["error"]["message"]
    assert len(bench.store) == 0
