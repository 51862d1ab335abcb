"""No client is refused when the binder dies or upgrades, under load and while HAProxy reloads."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

import multibinder
from tests.conftest import StartBinder
from tests.haproxy.conftest import MakeHaproxy
from tests.haproxy.support import Haproxy, bind_tcp, children_of, config, get
from tests.support import PATIENCE_S, Binder, can_connect, later, require, wait_until
from tests.support import multibinder as command_line
from tests.support.campaign import times
from tests.support.load import Load, Result

MakeFleet = Callable[[Path], "Fleet"]


RATE = 1000
#: More: MULTIBINDER_TEST_INSTANCES=100. 20 instances take a tenth of the time of 100.
INSTANCES = int(os.environ.get("MULTIBINDER_TEST_INSTANCES", times(8, 20)))


def listening_ports(host: str) -> list[int]:
    """Return the listening ports from the kernel's list (proc(5), /proc/net/tcp), where state 0A is LISTEN."""
    address = f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sorted(int(row[1][9:], 16) for row in rows if row[3] == "0A" and row[1].startswith(f"{address}:"))


def owners_of(socket_path: Path) -> dict[str, list[str]]:
    """Return the owners of each address from ``multibinder list``."""
    done = command_line("list", "--json", "--socket", socket_path)
    assert done.returncode == 0, done.stderr
    return {each["address"]: each["owners"] for each in msgspec.json.decode(done.stdout)}


def answers(socket_path: Path) -> int | None:
    """Return the PID that the binder reports; None while it does not answer."""
    try:
        with multibinder.Client(socket_path) as client:
            return client.hello().pid
    except multibinder.BinderUnavailable:
        return None


def starts_of(binder: Binder) -> int:
    """Return how often a binder has begun to serve, from its log."""
    return binder.log_path.read_text().count("event=serving ")


class Guarded:
    """A binder under its guard, which may be PID 1 of a new namespace."""

    def __init__(self, binder: Binder, guard: int) -> None:
        self.binder = binder
        self.guard = guard

    @property
    def pid(self) -> int:
        return wait_until(lambda: next(iter(children_of(self.guard)), 0), "there is a binder", log=self.binder.log)

    def kill(self) -> None:
        before = starts_of(self.binder)
        os.kill(self.pid, signal.SIGKILL)
        self._wait_for_life(before + 1)

    def upgrade_by_signal(self) -> None:
        """Send SIGUSR1 to the guard, which is the process that a user starts. The guard passes the signal on."""
        self._upgrade(lambda: os.kill(self.guard, signal.SIGUSR1))

    def upgrade_by_command(self) -> None:
        def upgrade() -> None:
            done = command_line("upgrade", "--socket", self.binder.socket_path)
            assert done.returncode == 0, f"{done.stderr}\n{self.binder.log()}"
            assert done.stdout.startswith("upgraded: "), done.stdout

        self._upgrade(upgrade)

    def _upgrade(self, upgrade: Callable[[], None]) -> None:
        before, pid = starts_of(self.binder), self.pid
        upgrade()
        self._wait_for_life(before + 1)
        assert self.pid == pid, "an upgrade must keep the process"

    def _wait_for_life(self, number: int) -> None:
        wait_until(lambda: starts_of(self.binder) >= number, f"the binder's life {number} begins", log=self.binder.log)
        wait_until(lambda: answers(self.binder.socket_path), "it answers", log=self.binder.log)


@pytest.fixture
def guarded(start_binder: StartBinder) -> Guarded:
    binder = start_binder("--guard")
    return Guarded(binder, binder.pid)


@pytest.fixture
def guarded_as_pid_1(start_binder: StartBinder) -> Iterator[Guarded]:
    require("root", os.geteuid() == 0, "a new PID namespace needs root")
    require("unshare", shutil.which("unshare"), "a new PID namespace needs unshare (util-linux)")
    binder = start_binder("--guard", prefix=["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"])
    [guard] = children_of(binder.pid)
    try:
        status = Path(f"/proc/{guard}/status").read_text()
        assert next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1] == "1"
        yield Guarded(binder, guard)
    finally:
        os.kill(guard, signal.SIGTERM)  # unshare itself ignores it
        assert binder.wait() == 0, binder.log()


class Unguarded:
    """A binder without a guard. While it is dead, only the live HAProxy keeps the sockets."""

    def __init__(self, start_binder: StartBinder) -> None:
        self._start = start_binder
        self.binder = self._current = start_binder()
        self._number = 1

    def kill(self) -> None:
        self._current.send_signal(signal.SIGKILL)
        self._current.wait()
        self._number += 1
        serve = [sys.executable, "-m", "multibinder", "serve", "--socket", str(self.binder.socket_path)]
        self._current = self._start(name=f"mb{self._number}", command=serve)
        assert answers(self.binder.socket_path) == self._current.pid


class Fleet:
    """Two instances that reload without pause, and add and drop a bind in turn."""

    def __init__(self, make_haproxy: MakeHaproxy, host: str) -> None:
        self.host = host
        self.instances = {"web": (make_haproxy("web"), 8000), "api": (make_haproxy("api"), 8010)}
        for instance, port in self.instances.values():
            instance.template.write_text(config(bind_tcp((host, port))))
            instance.start()
        self.reloads = 0
        self.retries: list[str] = []
        self.failure: BaseException | None = None
        self._stopping = threading.Event()

    def reload(self, instance: Haproxy) -> None:
        """Reload until it succeeds. A reload may fail only with a message that names the binder."""
        deadline = time.monotonic() + PATIENCE_S
        while (done := instance.reload()).returncode != 0:
            said = f"{done.stdout}{done.stderr}"
            assert done.returncode == 1, f"{said}\n{instance.log()}"
            assert f"the binder at {instance.environment['MULTIBINDER_SOCK']}" in said, f"{said}\n{instance.log()}"
            assert time.monotonic() < deadline, said
            self.retries.append(said)
        self.reloads += 1

    def churn(self, instance: Haproxy, port: int, load: Load) -> None:
        base, extra = (self.host, port), (self.host, port + 1)
        while not self._stopping.is_set():
            instance.template.write_text(config(bind_tcp(base), bind_tcp(extra)))
            self.reload(instance)
            load.add_target(*extra)
            self.reload(instance)
            load.remove_target(*extra)
            instance.template.write_text(config(bind_tcp(base)))
            self.reload(instance)

    def under_load(self, events: list[Callable[[], None]], log: Callable[[], str]) -> Result:
        """Run each event after two more reloads have ended, so that reloads are under way during the event."""

        def churn(instance: Haproxy, port: int) -> None:
            try:
                self.churn(instance, port, load)
            except BaseException as error:
                self.failure = self.failure or error

        def reloaded(number: int) -> bool:
            if self.failure:
                raise self.failure
            return self.reloads >= number

        with Load([(self.host, port) for _, port in self.instances.values()], rate=RATE, timeout_s=20) as load:
            threads = [threading.Thread(target=churn, args=each) for each in self.instances.values()]
            for thread in threads:
                thread.start()
            try:
                for number, event in enumerate(events, 1):
                    wait_until(lambda before=self.reloads: reloaded(before + 2), "two more reloads have ended", log=log)  # type: ignore[misc]
                    load.mark(f"{number} {event.__name__}")
                    event()
                wait_until(lambda before=self.reloads: reloaded(before + 2), "two more reloads have ended", log=log)  # type: ignore[misc]
            finally:
                self._stopping.set()
                for thread in threads:
                    thread.join()
            reloaded(0)
            return load.stop()

    def verify(self, result: Result, binder: Binder) -> None:
        """Assert that no connection was lost and that configurations, binder and kernel agree about the binds."""
        sys.stderr.write(f"{self.reloads} reloads, {len(self.retries)} tried again: {self.retries}\n{result.table()}\n")
        assert result.total.tried > 0
        assert result.total.failed == 0, f"{result.table()}\n{binder.log()}"
        assert result.total.longest_wait_s < 5, result.table()
        self._verify_agreement(binder, [])
        # Each instance must still be able to add and drop a bind.
        for instance, port in self.instances.values():
            instance.template.write_text(config(bind_tcp((self.host, port)), bind_tcp((self.host, port + 2))))
            instance.must_reload()
            assert get((self.host, port + 2)) == "ok"
        self._verify_agreement(binder, [2])
        for instance, port in self.instances.values():
            instance.template.write_text(config(bind_tcp((self.host, port))))
            instance.must_reload()
            assert not can_connect((self.host, port + 2))
        self._verify_agreement(binder, [])

    def _verify_agreement(self, binder: Binder, extra: list[int]) -> None:
        expected = {
            f"{self.host}:{port + above}": [f"haproxy@{name}"]
            for name, (_, port) in self.instances.items()
            for above in (0, *extra)
        }
        assert owners_of(binder.socket_path) == expected, binder.log()
        assert listening_ports(self.host) == sorted(int(address.partition(":")[2]) for address in expected)
        for instance, _ in self.instances.values():
            assert instance.status()["state"] == "running", instance.status()


@pytest.fixture
def make_fleet(run_dir: Path, host: str) -> Iterator[MakeFleet]:
    with contextlib.ExitStack() as running:

        def make(binder_socket: Path) -> Fleet:
            return Fleet(lambda name: running.enter_context(Haproxy(run_dir, binder_socket, name=name)), host)

        yield make


def test_kills_and_upgrades_of_a_guarded_binder_at_1000_connections_a_second_lose_none(
    guarded: Guarded, make_fleet: MakeFleet
) -> None:
    fleet = make_fleet(guarded.binder.socket_path)
    round_ = [guarded.kill, guarded.upgrade_by_signal, guarded.kill, guarded.kill, guarded.upgrade_by_command,
              guarded.kill]  # fmt: skip
    result = fleet.under_load(round_ * times(1, 5), guarded.binder.log)
    fleet.verify(result, guarded.binder)


def test_a_guard_whose_own_supervisor_never_reads_its_notifications_goes_on(guarded: Guarded) -> None:
    """Each new binder notifies the supervisor. A queue of unread datagrams takes 10 by default (unix(7))."""
    limit = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    require("short datagram queue", limit <= 20, f"net.unix.max_dgram_qlen is {limit}: that many lives take too long")
    for _ in range(limit + 2):
        guarded.kill()


def test_kills_of_a_binder_whose_guard_is_pid_1_of_a_namespace_lose_none(
    guarded_as_pid_1: Guarded, make_fleet: MakeFleet
) -> None:
    fleet = make_fleet(guarded_as_pid_1.binder.socket_path)
    result = fleet.under_load([guarded_as_pid_1.kill] * times(2, 5), guarded_as_pid_1.binder.log)
    fleet.verify(result, guarded_as_pid_1.binder)


def test_kills_of_a_binder_without_a_guard_lose_none_because_the_next_recovers_from_haproxy(
    start_binder: StartBinder, make_fleet: MakeFleet
) -> None:
    unguarded = Unguarded(start_binder)
    fleet = make_fleet(unguarded.binder.socket_path)
    result = fleet.under_load([unguarded.kill] * times(2, 5), unguarded.binder.log)
    fleet.verify(result, unguarded.binder)


@pytest.mark.parametrize("event", ["kill", "upgrade_by_signal", "upgrade_by_command"])
def test_a_reload_after_a_kill_or_an_upgrade_can_add_a_bind_and_drop_an_older_one(
    guarded: Guarded, make_fleet: MakeFleet, host: str, event: str
) -> None:
    web, port = make_fleet(guarded.binder.socket_path).instances["web"]
    before, after = (host, port + 5), (host, port + 6)
    web.template.write_text(config(bind_tcp((host, port)), bind_tcp(before)))
    web.must_reload()
    getattr(guarded, event)()
    web.template.write_text(config(bind_tcp((host, port)), bind_tcp(before), bind_tcp(after)))
    assert f"  added   {host}:{after[1]}\n" in web.must_reload()
    assert get(before) == get(after) == "ok"
    owners = owners_of(guarded.binder.socket_path)
    assert [owners.get(f"{host}:{each}") for each in (port, before[1], after[1])] == [["haproxy@web"]] * 3
    web.template.write_text(config(bind_tcp((host, port)), bind_tcp(after)))
    assert f"  dropped {host}:{before[1]}\n" in web.must_reload()
    assert not can_connect(before)
    assert owners_of(guarded.binder.socket_path)[f"{host}:{after[1]}"] == ["haproxy@web"]


def test_a_reload_waits_a_moment_for_a_binder_that_restarts(guarded: Guarded, make_fleet: MakeFleet, host: str) -> None:
    web, port = make_fleet(guarded.binder.socket_path).instances["web"]
    web.template.write_text(config(bind_tcp((host, port)), bind_tcp((host, port + 1))))
    guarded.binder.suspend()  # so that the binder does not answer before the reload asks it
    with later(1.0, guarded.binder.resume):
        os.kill(guarded.pid, signal.SIGKILL)
        web.must_reload()
    assert get((host, port + 1)) == "ok"


@pytest.fixture
def three(make_haproxy: MakeHaproxy, host: str) -> list[Haproxy]:
    instances = [make_haproxy(name) for name in ("a", "b", "c")]
    for number, instance in enumerate(instances):
        instance.template.write_text(config(bind_tcp((host, 8000 + number))))
        instance.start()
    return instances


def generations(instances: list[Haproxy]) -> list[int]:
    return [instance.loaded()["generation"] for instance in instances]


def headlines(text: str) -> list[str]:
    """Return the lines that report progress."""
    return [line for line in text.splitlines() if line.startswith("[")]


def test_reload_all_reloads_every_instance_in_turn_and_reports_its_progress(three: list[Haproxy]) -> None:
    before = generations(three)
    done = three[0].command("reload", "--all")
    assert (done.returncode, done.stderr) == (0, "")
    lines = headlines(done.stdout)
    assert [line.partition(" reloaded in ")[0] for line in lines] == ["[1/3] a:", "[2/3] b:", "[3/3] c:"], done.stdout
    assert generations(three) == [number + 1 for number in before]


def test_reload_all_stops_at_the_first_failure_and_lists_the_instances_not_tried(three: list[Haproxy]) -> None:
    before = generations(three)
    three[1].template.write_text("{{ no_such_thing }}\n")
    done = three[0].command("reload", "--all")
    assert done.returncode == 1
    assert [line.split()[:3] for line in headlines(done.stdout)] == [
        ["[1/3]", "a:", "reloaded"],
        ["[2/3]", "b:", "failed"],
    ]
    reason, summary = done.stderr.splitlines()
    assert reason == f"multibinder-haproxy: b: {three[1].template}:1: 'no_such_thing' is undefined"
    assert summary == "failed: b; not tried: c (--keep-going)"
    assert generations(three) == [before[0] + 1, *before[1:]]


def test_reload_all_with_keep_going_tries_all_and_fails_if_one_did(three: list[Haproxy]) -> None:
    before = generations(three)
    three[0].template.write_text("{{ no_such_thing }}\n")
    three[1].template.write_text(three[1].template.read_text() + "    no-such-keyword\n")
    done = three[0].command("reload", "--all", "--keep-going")
    assert done.returncode == 1
    said = [line.split()[:3] for line in headlines(done.stdout)]
    assert said == [["[1/3]", "a:", "failed"], ["[2/3]", "b:", "failed"], ["[3/3]", "c:", "reloaded"]]
    assert done.stderr.splitlines()[-1] == "failed: a, b"
    assert generations(three) == [*before[:2], before[2] + 1]


def test_reload_all_skips_stopped_instances_and_says_if_none_runs(three: list[Haproxy]) -> None:
    assert three[0].command("stop", "a").returncode == 0
    assert len(headlines(three[0].command("reload", "--all").stdout)) == 2
    for name in ("b", "c"):
        assert three[0].command("stop", name).returncode == 0
    done = three[0].command("reload", "--all")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"No instance runs in {three[0].runtime}.\n"


def test_many_instances_on_one_binder_can_start_reload_and_stop(
    make_haproxy: MakeHaproxy, binder: Binder, host: str
) -> None:
    instances = [make_haproxy(f"i{number:03}") for number in range(INSTANCES)]
    ports = [10000 + number for number in range(INSTANCES)]
    times = [time.monotonic()]
    for instance, port in zip(instances, ports, strict=True):
        instance.template.write_text(config(bind_tcp((host, port))))
        instance.start(ready=False)
    for instance in instances:
        wait_until(instance.is_up, f"{instance.name} is up", log=instance.log, timeout_s=20 + INSTANCES)
    times.append(time.monotonic())
    assert owners_of(binder.socket_path) == {
        f"{host}:{port}": [f"haproxy@{instance.name}"] for instance, port in zip(instances, ports, strict=True)
    }
    done = instances[0].command("reload", "--all", timeout_s=20 + 5 * INSTANCES)
    times.append(time.monotonic())
    assert (done.returncode, done.stderr, len(headlines(done.stdout))) == (0, "", INSTANCES), done.stderr
    assert generations(instances) == [2] * INSTANCES
    assert [get((host, port)) for port in ports] == ["ok"] * INSTANCES
    memory = next(line for line in Path(f"/proc/{binder.pid}/status").read_text().splitlines() if "VmRSS" in line)
    times.append(time.monotonic())
    for instance in instances:
        assert instance.command("stop", instance.name).returncode == 0
        instance.wait()
    times.append(time.monotonic())
    assert owners_of(binder.socket_path) == {}
    assert listening_ports(host) == []
    started, reloaded, _, stopped = (after - before for before, after in itertools.pairwise(times))
    sys.stderr.write(
        f"{INSTANCES}: start {started:.1f} s, reload --all {reloaded:.1f} s, stop {stopped:.1f} s, binder {memory}\n"
    )
