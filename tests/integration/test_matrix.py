"""Each option of each kind is what was asked for, whatever has happened to the binder since.

The sockets are looked at by another owner, who asks for no option, so that nothing is set anew by the look.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from multibinder import BindError, Client, ListenerSpec, Options
from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from tests.integration.test_recover import Holder, kill, successor
from tests.support import Binder, serving_pid
from tests.support.kernel_options import VALUES, expected, shown

IS_ROOT = os.geteuid() == 0
#: Another value of each option.
OTHERS: dict[str, Any] = {
    "freebind": False, "transparent": False, "mark": 8, "mss": 1300, "defer_accept": 3, "fastopen": 6,
    "user_timeout": 6000, "keepalive_idle": 60, "keepalive_interval": 12, "keepalive_count": 5, "tos": 32,
    "rcvbuf": 90_000, "sndbuf": 80_000, "backlog": 21, "mode": 0o640, "user": 1234, "group": 1235,
}  # fmt: skip
MORE = {"backlog": 20, "mode": 0o606, "user": 2234, "group": 2235, "v6only": True}
#: The kernel has them for root only.
OF_ROOT = frozenset({"transparent", "mark", "user", "group"})
#: IPV6_TCLASS is not known to Multipath TCP; an IPv4 address has no v6only, and an abstract name no file.
UNKNOWN = {("mptcp6@", "tos")}


class Case(msgspec.Struct, frozen=True):
    """One listener with one option."""

    address: Address
    option: str
    value: Any
    shard: int = 0

    def spec(self, **options: Any) -> ListenerSpec:
        return ListenerSpec(self.address, Options(**options), self.shard)

    @property
    def asked(self) -> ListenerSpec:
        return self.spec(**{self.option: self.value})

    @property
    def is_live(self) -> bool:
        return self.option in kinds.of_address(self.address).live_options


def is_known(prefix: str, address: Address, option: str) -> bool:
    if option in OF_ROOT and not IS_ROOT:
        return False
    value = {**VALUES, **MORE}[option]
    try:
        kinds.of_address(address).check(address, Options(**{option: value}))
    except ValueError:
        return False
    return (prefix, option) not in UNKNOWN


def cases(host: str, run_dir: Path) -> Iterator[Case]:
    """Yield a case for each kind and option, on addresses of the test's own."""
    ports = iter(range(8000, 9000))
    makers: dict[str, Callable[[], str]] = {
        "tcp": lambda: f"{host}:{next(ports)}",
        "tcp6@": lambda: f"[::1]:{next(ports) + os.getpid() % 2000 * 20}",
        "mptcp4@": lambda: f"mptcp@{host}:{next(ports)}",
        "mptcp6@": lambda: f"mptcp@[::1]:{next(ports) + os.getpid() % 2000 * 20}",
        "udp4@": lambda: f"udp@{host}:{next(ports)}",
        "udp6@": lambda: f"udp@[::1]:{next(ports) + os.getpid() % 2000 * 20}",
        "quic4@": lambda: f"quic@{host}:{next(ports)}",
        "unix@": lambda: f"unix@{run_dir}/{next(ports)}",
        "uxdg@": lambda: f"uxdg@{run_dir}/{next(ports)}",
        "unixseq@": lambda: f"unixseq@{run_dir}/{next(ports)}",
        "abns@": lambda: f"abns@multibinder-{os.getpid()}-{next(ports)}",
        "vsock@": lambda: f"vsock@*:{next(ports) + os.getpid() * 1000}",
    }
    for prefix, make in makers.items():
        if not _kernel_has(prefix):
            continue
        for option, value in {**VALUES, **MORE}.items():
            address = Address.parse(make())
            if is_known(prefix, address, option):
                yield Case(address, option, value)


def _kernel_has(prefix: str) -> bool:
    family, proto = {"vsock@": (socket.AF_VSOCK, 0), "mptcp4@": (socket.AF_INET, socket.IPPROTO_MPTCP)}.get(
        prefix, (socket.AF_INET6 if "6@" in prefix else socket.AF_INET, 0)
    )
    try:
        with socket.socket(family, socket.SOCK_STREAM, proto) as sock:
            if family == socket.AF_INET6:
                sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def of_file(case: Case) -> int:
    status = os.stat(str(case.address).partition("@")[2])
    return {"mode": status.st_mode & 0o777, "user": status.st_uid, "group": status.st_gid}[case.option]


def look(client: Client, each: Case) -> object:
    """Return what the kernel shows of the option of a listener."""
    if each.option in ("mode", "user", "group"):
        return of_file(each)
    [sock] = client.bind([each.spec()], owner="looker")
    with sock:
        if each.option == "v6only":
            return sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        if each.option == "backlog":
            return sock.fileno()  # read from the binder below
        return shown(sock, each.option)


def require(binder: Binder, wanted: dict[Case, Any]) -> dict[str, int]:
    """Check that each listener has this value of its option. Return the cookie of each, by its key."""
    wrong: list[str] = []
    with Client(binder.socket_path) as client:
        listed = {each.key: each for each in client.list()}
        for case, value in wanted.items():
            status = listed[str(case.address)]
            if case.option == "backlog":
                is_right = status.backlog in (value, None) and status.backlog_requested == value
                seen: object = (status.backlog, status.backlog_requested)
            else:
                seen = look(client, case)
                is_right = seen == (value if case.option in MORE else expected(case.option, value))
            if not is_right or (status.options.get(case.option) or False) != value:
                wrong.append(f"{case.address}: {case.option} is {seen}, {value} was asked; {status.options}")
    assert wrong == []
    return {key: each.cookie for key, each in listed.items()}


def bind(binder: Binder, *specs: ListenerSpec) -> None:
    with Client(binder.socket_path) as client:
        for sock in client.bind(specs, owner="me"):
            sock.close()


@pytest.fixture
def matrix(host: str, run_dir: Path) -> list[Case]:
    return list(cases(host, run_dir))


def test_options_are_what_was_asked_through_binds_upgrades_and_crashes(run_dir: Path, matrix: list[Case]) -> None:
    asked = {case: case.value for case in matrix}
    with Binder(run_dir, "--guard") as guard:
        guard.wait_until_ready()
        bind(guard, *(case.asked for case in matrix))
        cookies = require(guard, asked)

        other = {case: OTHERS[case.option] for case in matrix if case.is_live}
        bind(guard, *(case.spec(**{case.option: value}) for case, value in other.items()))
        assert require(guard, other) == cookies
        for case in matrix:
            if not case.is_live:
                value = {"v6only": False, "interface": "eth9"}.get(case.option, OTHERS.get(case.option))
                with pytest.raises(BindError, match=f"the listener exists with {case.option} "):
                    bind(guard, case.spec(**{case.option: value}))
        bind(guard, *(case.asked for case in matrix))
        assert require(guard, asked) == cookies

        pid = serving_pid(guard.socket_path)
        with Client(guard.socket_path) as client:
            client.upgrade()
        serving_pid(guard.socket_path)
        assert require(guard, asked) == cookies

        os.kill(pid, signal.SIGKILL)
        serving_pid(guard.socket_path, not_=pid)
        assert require(guard, asked) == cookies

        # The binder knows still who has set them: that owner does not ask any more.
        bind(guard, *(case.spec() for case in matrix))
        with Client(guard.socket_path) as client:
            left = {each.key: {*each.options} for each in client.list()}
        assert [case for case in matrix if case.is_live and case.option in left[str(case.address)]] == []


def test_options_are_what_was_asked_after_a_recovery_from_a_holder(run_dir: Path, matrix: list[Case]) -> None:
    asked = {case: case.value for case in matrix}
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.closing(_Killed(run_dir)))
        with Client(first.binder.socket_path) as client:
            sockets = client.bind([case.asked for case in matrix], owner="me")
        holder = Holder(*(sock.fileno() for sock in sockets))
        stack.callback(holder.end)
        for sock in sockets:
            sock.close()
        cookies = require(first.binder, asked)
        kill(first.binder)
        with successor(first.binder) as binder:
            assert require(binder, asked) == cookies


class _Killed:
    """A binder that the test kills."""

    def __init__(self, run_dir: Path) -> None:
        self.binder = Binder(run_dir)
        self.binder.wait_until_ready()

    def close(self) -> None:
        if self.binder.process.poll() is None:
            self.binder.process.kill()
            self.binder.process.wait()
        self.binder.__exit__(None, None, None)
