"""No sequence of requests gives an unprivileged process a descriptor that the policy does not grant.

Each policy is written twice: as a file for the binder, and as a function that says whether the policy grants a socket.
The test asks the kernel what the received descriptors are bound to. MULTIBINDER_POLICY_SEQUENCES in the
environment makes a longer run of another seed each time, which Hypothesis prints when it fails.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

# Hypothesis is a development tool: without it, these tests are skipped.
hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from multibinder import Address, Client, ListenerSpec, MultibinderError  # noqa: E402
from multibinder.wire.listener_params import ListenerParams  # noqa: E402
from multibinder.wire.status import ListenerStatus  # noqa: E402
from tests.support import Binder, Json, own_host, require, require_ipv6, wait_until  # noqa: E402
from tests.support.stranger import Received, Stranger  # noqa: E402

UID, GID, GROUP = 4242, 4242, 5151
SEQUENCES = int(os.environ.get("MULTIBINDER_POLICY_SEQUENCES", "0"))

GOOD, BAD = own_host(), own_host()
HOSTS = [GOOD, GOOD, GOOD, BAD, "0.0.0.0", "::", "::1", "::1", f"::ffff:{GOOD}", f"::ffff:{BAD}", "::ffff:0.0.0.0"]
#: Below the range from which the kernel chooses ports, and not used by other programs on a test machine.
PORTS = [17301, 17302, 17303]
NAMES = ["one", "two"]


class Request(NamedTuple):
    """A request of root or of the stranger, or a change of the policy."""

    who: str
    method: str
    params: list[Json]


class Situation(NamedTuple):
    """The facts beside the descriptor that decide whether it is granted: the request, and the listener before it."""

    asked: Json
    known: ListenerStatus | None
    chosen_for_us: bool


def _port(asked: Json) -> int:
    port: int = asked["port"] if "port" in asked else int(asked["endpoint"].rpartition(":")[2])
    return port


def _ip4(got: Received) -> str | None:
    """Return the IPv4 host that the socket occupies, 0.0.0.0 for all of them, or None."""
    if ":" not in got.host:
        return got.host
    if got.host.startswith("::ffff:"):
        return got.host.removeprefix("::ffff:")
    return "0.0.0.0" if got.host == "::" and not got.v6only else None


def _one_host(got: Received, situation: Situation) -> bool:
    """Grant two TCP ports of one host, and ports that the kernel chose for the stranger. Only these may have names."""
    asked = {key for key, value in situation.asked.items() if value is not None}
    is_chosen = situation.chosen_for_us or (situation.known is None and _port(situation.asked) == 0)
    return (
        _ip4(got) == GOOD
        and not got.datagrams
        and ((got.port in (17301, 17302) and not asked & {"name", "v6only"}) or (is_chosen and not asked & {"v6only"}))
    )


def _all_but(got: Received, situation: Situation) -> bool:
    """Grant all but port 17303, the host BAD, wildcards that include BAD, and requests with a backlog."""
    ip4 = _ip4(got)
    return got.port != 17303 and ip4 not in (BAD, "0.0.0.0") and situation.asked.get("backlog") is None


def _ipv6_only(got: Received, situation: Situation) -> bool:
    """Grant three ports of IPv6: of UDP one of them."""
    return _ip4(got) is None and (got.port == 17302 if got.datagrams else got.port in PORTS)


def _nothing(got: Received, situation: Situation) -> bool:
    return False


POLICIES: list[tuple[str, Callable[[Received, Situation], bool]]] = [
    (f"""
[[rule]]
uid = {UID}
allow = ["bind", "release"]
address = "{GOOD}:17301-17302"
options = ["backlog"]

[[rule]]
gid = {GROUP}
allow = ["bind", "release", "list"]
address = "{GOOD}:0"
options = ["backlog", "name"]
""", _one_host),
    (f"""
[[rule]]
deny = "*"
address = ["{BAD}:*", "*:17303"]

[[rule]]
deny = "bind"
options = ["backlog"]

[[rule]]
uid = {UID}
allow = "*"
""", _all_but),
    (f"""
[[rule]]
gid = {GROUP}
allow = ["bind", "release"]
address = ["ipv6@*:17301-17303", "udp6@*:17302"]
""", _ipv6_only),
    (f"""
[[rule]]
uid = {UID + 1}
allow = "*"

[[rule]]
uid = {UID}
allow = ["list", "status", "release"]
""", _nothing),
]  # fmt: skip


@st.composite
def listeners(draw: st.DrawFn) -> Json:
    if draw(st.integers(0, 2)) == 2:
        # The stranger may find by this name a listener that root made.
        return {"address": GOOD, "port": draw(st.sampled_from([0, 0, *PORTS])), "name": "one"}
    element: Json = {"address": draw(st.sampled_from(HOSTS)), "port": draw(st.sampled_from([0, *PORTS]))}
    if draw(st.integers(0, 3)) == 3:
        host = f"[{element['address']}]" if ":" in element["address"] else element["address"]
        element = {"endpoint": f"udp@{host}:{element['port']}"}
    # Most requests have no options; otherwise few would be granted.
    if draw(st.integers(0, 2)) == 2:
        element["name"] = draw(st.sampled_from(NAMES))
    if draw(st.integers(0, 3)) == 3:
        element["owner"] = draw(st.sampled_from(["ours", "ours", "roots"]))
    if draw(st.integers(0, 4)) == 4:
        element["rcvbuf" if "endpoint" in element else "backlog"] = draw(st.sampled_from([100, 3000]))
    if ":" in element.get("address", "") and draw(st.integers(0, 2)) == 2:
        element["v6only"] = draw(st.booleans())
    return element


@st.composite
def requests(draw: st.DrawFn) -> Request:
    who = draw(st.sampled_from(["stranger"] * 6 + ["root"] * 2 + ["policy"]))
    if who == "policy":
        return Request(who, str(draw(st.integers(0, len(POLICIES) - 1))), [])
    method = draw(st.sampled_from(["bind", "bind", "bind", "check", "release", "list", "status"]))
    if method in ("list", "status"):
        return Request(who, method, [])
    params = [draw(listeners()) for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3])))]
    if draw(st.integers(0, 4)) == 0:
        params.append(params[0])
    return Request(who, method, params)


sequences = st.tuples(st.integers(0, len(POLICIES) - 1), st.lists(requests(), min_size=4, max_size=16))


class World:
    """One binder for all sequences. Each sequence starts without listeners."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "policy.toml"
        self._file.touch(0o600)
        self.binder = Binder(
            directory, "--mode", "0666", "--policy", str(self._file), "--max-rate-per-uid", "1000000", "--no-recover"
        )
        self.granted = 0
        self.refused = 0

    def open(self) -> None:
        self.binder.wait_until_ready()
        self.stranger = Stranger(UID, self.binder.socket_path, gid=GID, groups=(GROUP,))
        self._root = Client(self.binder.socket_path)

    def close(self) -> None:
        self._root.close()
        self.stranger.__exit__(None, None, None)

    def put_in_force(self, number: int) -> None:
        self._file.write_text(POLICIES[number][0])
        self._grants = POLICIES[number][1]
        log = self.binder.log_path
        before = log.stat().st_size
        self.binder.send_signal(signal.SIGHUP)

        def loaded() -> bool:
            with log.open("rb") as file:
                file.seek(before)
                return b"event=policy-reloaded" in file.read()

        wait_until(loaded, "the policy is in force", log=self.binder.log)

    def begin(self, number: int) -> None:
        with contextlib.suppress(MultibinderError):
            for status in self._root.list():
                for owner in status.claims:
                    spec = ListenerSpec(Address.parse(status.address))
                    self._root.release([spec], owner=f"{owner.label}:{owner.uid}")
        assert self._root.list() == []
        self._chosen: set[int] = set()
        self.put_in_force(number)

    def as_root(self, request: Request) -> None:
        specs = []
        with contextlib.suppress(MultibinderError):
            specs = [ListenerParams(**each).spec() for each in request.params]
        with contextlib.suppress(MultibinderError):
            match request.method:
                case "bind":
                    for listener in self._root.bind(specs, owner=request.params[0].get("owner", "")):
                        listener.close()
                case "release":
                    self._root.release(specs, owner=request.params[0].get("owner", ""))

    def as_stranger(self, request: Request) -> None:
        before = {status.address: status for status in self._root.list()}
        cookies = {status.cookie for status in before.values()}
        told = self.stranger.ask(request.method, *request.params)
        if request.method != "bind" or "error" in told.reply:
            assert told.received == [], "descriptors came with an answer that grants none"
            self.refused += "error" in told.reply
            return
        after = {status.address: status for status in self._root.list()}
        assert len(told.received) == len(request.params)
        new: dict[str, Json] = {}  # listeners that this request made, with the element that made each
        for asked, got in zip(request.params, told.received, strict=True):
            address = f"[{got.host}]:{got.port}" if ":" in got.host else f"{got.host}:{got.port}"
            address = f"udp@{address}" if got.datagrams else address
            status = after[address]
            known = before.get(address) if status.cookie in cookies else None
            if known is None and _port(asked) == 0 and address not in new:
                self._chosen.add(status.cookie)
            maker = new.setdefault(address, asked)
            # Elements that name a listener of the same request are judged one by one, as they were asked.
            ours = status.cookie in self._chosen and (known is not None or _port(maker) == 0)
            assert self._grants(got, Situation(asked, known, ours)), f"{got} is not granted; asked for {asked}"
            self.granted += 1


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    require("root", os.geteuid() == 0, "a second user needs root")
    require_ipv6()
    with tempfile.TemporaryDirectory(prefix="mb-") as name:
        directory = Path(name)
        directory.chmod(0o711)
        world = World(directory)
        with world.binder:
            world.open()
            try:
                yield world
            finally:
                world.close()


@settings(
    max_examples=SEQUENCES or 300,
    derandomize=not SEQUENCES,
    print_blob=bool(SEQUENCES),
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(sequence=sequences)
def test_no_sequence_of_requests_ends_with_a_descriptor_that_the_policy_does_not_grant(
    world: World, sequence: tuple[int, list[Request]]
) -> None:
    number, steps = sequence
    world.begin(number)
    for step in steps:
        if step.who == "policy":
            world.put_in_force(int(step.method))
        elif step.who == "root":
            world.as_root(step)
        else:
            world.as_stranger(step)


def test_those_sequences_had_both_grants_and_refusals(world: World) -> None:
    """Without both, the test above would prove nothing. Runs after it, on the same binder."""
    if not world.granted + world.refused:
        pytest.skip("the sequences have not run")
    print(f"{world.granted} descriptors granted, {world.refused} requests refused")  # noqa: T201
    assert world.granted > 100
    assert world.refused > 100
    assert "internal-error" not in world.binder.log_path.read_text()
