"""One life of a binder or guard under strace, and what must be true of it whatever call failed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from multibinder import Address, Client, MultibinderError
from multibinder.binder.settings import Settings
from multibinder.cli.invocation import Invocation
from multibinder.wire import kinds
from tests.support.commands import clean_environment
from tests.sweep import strace
from tests.sweep.store import Store

#: How long a client waits for one answer, and how long the script waits for a condition.
_ANSWER_S, _PATIENCE_S = 3.0, 15.0
_ENTRY = Path(__file__).with_name("entry.py")
HostAndPort = tuple[str, int]
_T = TypeVar("_T")


class Report(msgspec.Struct):
    """The outcome of one life.

    ``findings`` are broken promises; an empty list is the aim. ``descriptors`` is the number that were open at the end
    of the script; 0 if that was not reached. ``reached`` is the call that failed, None if it was not reached.
    """

    findings: list[str]
    descriptors: int = 0
    reached: str | None = None
    log: str = ""


class Life:
    """The process under test, and what its clients were told.

    ``acknowledged`` are the TCP addresses that a client received and nobody asked to release; ``released`` are those
    whose release was answered. ``others`` are acknowledged addresses of other kinds, and of shards.
    """

    module = ""

    def __init__(self, directory: Path, host: str, injection: strace.Injection | None) -> None:
        self.directory = directory
        self.host = host
        self.socket_path = str(directory / "mb.sock")
        self.log_path = directory / "log"
        self.trace_path = directory / "trace"
        self.policy_path = directory / "policy.toml"
        self.findings: list[str] = []
        self.acknowledged: set[HostAndPort] = set()
        self.released: set[HostAndPort] = set()
        self.others: list[str] = []
        self.pids: set[int] = set()
        self._injection = injection
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> Report:
        """Run the whole life. Nothing of it is left when this returns."""
        report = Report(self.findings)
        self.policy_path.write_text(_POLICY)
        try:
            with contextlib.closing(Store(self.directory / "notify")) as store:
                self.start(store)
                if self.has_started(store):
                    self.script()
                    report.descriptors = self.judge(store)
                    self.stop()
        finally:
            self._kill_rest()
        report.log = self.log()
        # The interpreter itself writes to the socketpair of a signal, which fails in no kernel.
        if "Traceback" in report.log and "signal wakeup fd" not in report.log:
            self.findings.append("a traceback in the log")
        if self._injection is not None:
            report.reached = strace.injected_call(self.trace_path)
        return report

    def start(self, store: Store) -> None:
        """Start the process with one inherited listener, as a socket unit would."""
        inherited = socket.create_server((self.host, 8000))
        self.acknowledged.add((self.host, 8000))
        prefix = (
            strace.injecting(self.trace_path, self._injection)
            if self._injection is not None
            else strace.recording(self.trace_path)
        )
        settings = msgspec.json.encode(self.invocation()).decode()
        command = [sys.executable, "-P", str(_ENTRY), f"multibinder.cli.{self.module}", settings]
        with inherited, self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*prefix, *command],
                env=clean_environment(
                    {
                        "SWEEP_LISTENER": str(inherited.fileno()),
                        "NOTIFY_SOCKET": str(self.directory / "notify"),
                        "PYTHONPATH": os.pathsep.join(sys.path),
                        "PYTHONDONTWRITEBYTECODE": "1",
                        **self.environment(),
                    }
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[inherited.fileno()],
            )

    def invocation(self) -> Invocation:
        return Invocation(
            Settings(self.socket_path, policy=str(self.policy_path), pidfile=str(self.directory / "pid"), recover=True)
        )

    def environment(self) -> dict[str, str]:
        return {}

    def has_started(self, store: Store) -> bool:
        """Wait until it serves. A start may fail, if it says why and ends."""
        assert self._process is not None
        process = self._process
        self.wait(lambda: store.is_ready or process.poll() is not None, 5)
        # The notification itself may be what failed.
        if store.is_ready or self.pid():
            return True
        if process.poll() is None:
            self.findings.append("it neither serves nor ends")
        elif not self.log().strip():
            self.findings.append(f"it did not start and did not say why (status {process.returncode})")
        return False

    def script(self) -> None:
        raise NotImplementedError

    def judge(self, store: Store) -> int:
        """Compare what the clients were told with what is. Return the number of open descriptors."""
        pid = self.pid()
        if not pid:
            # After an execve(2) it may end, if it says why: the store has what it held.
            missing = self.acknowledged - store.addresses()
            log = self.log()
            if missing or "event=upgrading" not in log or "the system refused what a start needs" not in log:
                self.findings.append(
                    f"no binder answers, and {len(missing)} acknowledged listeners are not in the store"
                )
            return 0
        listed = self.ask(self._tcp_addresses, tries=5)
        if listed is None:
            self.findings.append("the binder does not answer 'list'")
        else:
            for address in sorted(self.acknowledged - listed):
                self.findings.append(f"{address} was acknowledged and is gone")
            shown = self.ask(lambda client: [each.address for each in client.list()], tries=5) or []
            for text in {*self.others}:
                if shown.count(text) < self.others.count(text):
                    self.findings.append(f"{text} was acknowledged {self.others.count(text)} times and is gone")
        for address in sorted(self.acknowledged):
            if not _listens(address):
                self.findings.append(f"{address} was acknowledged and refuses clients")
        for text in {*self.others}:
            if not _is_there(text):
                self.findings.append(f"{text} was acknowledged and is not there for clients")
        for address in sorted(self.released):
            if _listens(address):
                self.findings.append(f"{address} was released and listens")
        return self.count_descriptors()

    def _tcp_addresses(self, client: Client) -> set[HostAndPort]:
        found = {each.address for each in client.list()}
        return {(self.host, _port(text)) for text in found if text.startswith(f"{self.host}:")}

    def count_descriptors(self) -> int:
        """Return the lowest number of descriptors in a second: connections that end and searches take a moment."""
        lowest = 10**6
        deadline = time.monotonic() + 0.6
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                lowest = min(lowest, sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.counted_pids()))
            time.sleep(0.05)
        return lowest

    def counted_pids(self) -> Sequence[int]:
        return [self.pid()]

    def stop(self) -> None:
        """End the process. An error at the end may change its exit status, but it must end."""
        if not (pid := self.pid_to_stop()):
            return  # it has ended, and ``judge`` has judged that
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        if not self.wait(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid)):
            self.findings.append("SIGTERM does not end it")

    def pid_to_stop(self) -> int:
        return self.pid()

    def bind(self, *ports: int, owner: str = "sweep") -> bool:
        addresses = [(self.host, port) for port in ports]

        def bind(client: Client) -> bool:
            for listener in client.bind(addresses, owner=owner):
                listener.close()
            return True

        if self.ask(bind):
            self.acknowledged.update(addresses)
            return True
        return False

    def bind_others(self, *texts: str, shards: int | None = None) -> None:
        """Bind addresses of other kinds, or shards of a TCP address."""

        def bind(client: Client) -> bool:
            for listener in client.bind([*texts], owner="sweep", shards=shards):
                listener.close()
            return True

        if self.ask(bind):
            self.others += [text for text in texts for _ in range(shards or 1)]

    def release(self, port: int, owner: str = "sweep") -> None:
        address = (self.host, port)
        # Whatever is answered, it is not certain any more that it listens.
        self.acknowledged.discard(address)
        if self.ask(lambda client: client.release([address], owner=owner)):
            self.released.add(address)

    def ask(self, question: Callable[[Client], _T], tries: int = 1) -> _T | None:
        """Ask the binder, and return the answer; None after an error, which an injection may cause."""
        for _ in range(tries):
            try:
                with Client(self.socket_path, timeout=_ANSWER_S) as client:
                    return question(client)
            except (MultibinderError, OSError, RuntimeWarning):
                time.sleep(0.1)
        return None

    def pid(self) -> int:
        """Return the PID of the binder that answers; 0 if none does."""
        hello = self.ask(lambda client: client.hello(), tries=5)
        if hello is None:
            return 0
        self.pids.add(hello.pid)
        return hello.pid

    def send(self, pid: int, number: signal.Signals) -> None:
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self, condition: Callable[[], object], timeout_s: float = _PATIENCE_S) -> bool:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def traced_pid(self) -> int:
        """Return the PID of the traced process: the only child of strace. 0 if it has ended."""
        assert self._process is not None
        with contextlib.suppress(OSError, ValueError):
            own = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            return int(own[0]) if own else 0
        return 0

    def _kill_rest(self) -> None:
        traced = self.traced_pid() if self._process is not None else 0
        for pid in {*self.pids, traced} - {0}:
            with contextlib.suppress(OSError):
                if str(self.directory).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            try:
                self._process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class BinderLife(Life):
    """A binder with a descriptor store."""

    module = "binder_main"

    def environment(self) -> dict[str, str]:
        return {"FDSTORE": "64"}

    def script(self) -> None:
        pid = self.pid()
        self.bind(8001)
        self.bind(8002, 8003)
        self.ask(lambda client: client.check([(self.host, 8009)]))
        self.ask(lambda client: client.list())
        self.ask(lambda client: client.status())
        self.release(8002)
        self.policy_path.write_text(_POLICY + "\n# changed\n")
        before = self.log().count("policy-reloaded")
        self.send(pid, signal.SIGHUP)
        self.wait(lambda: self.log().count("policy-reloaded") > before or "policy-broken" in self.log(), 2)
        self.bind(8004, owner="other")
        self.bind_others(f"udp@{self.host}:8006", f"unix@{self.directory / 'u.sock'}")
        self.bind_others(f"{self.host}:8007", shards=2)
        self.ask(lambda client: client.upgrade())
        self.wait(lambda: self.log().count("event=serving") > 1 or "upgrade-" in self.log(), 4)
        self.bind(8005)
        self.release(8003)
        self.ask(lambda client: client.status())


class GuardLife(Life):
    """A guard, whose binder is killed twice and which upgrades itself once."""

    module = "guard_main"

    def script(self) -> None:
        self.bind(8001)
        self.bind(8002, 8003)
        self.release(8002)
        self._kill_binder()
        self.bind(8004)
        self.send(self.traced_pid(), signal.SIGUSR2)
        self.wait(lambda: "event=guard-upgrad" in self.log(), 4)
        self.release(8003)
        self._kill_binder()
        self.bind(8005)

    def counted_pids(self) -> Sequence[int]:
        return [self.traced_pid()]

    def pid_to_stop(self) -> int:
        return self.traced_pid()

    def _kill_binder(self) -> None:
        pid = self.pid()
        self.send(pid, signal.SIGKILL)
        self.wait(lambda: self.pid() not in (0, pid), 10)


_POLICY = '[[rule]]\nuid = 0\nallow = "*"\n'
LIVES: dict[str, type[Life]] = {"binder": BinderLife, "guard": GuardLife}


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _listens(address: HostAndPort) -> bool:
    try:
        socket.create_connection(address, _ANSWER_S).close()
    except ConnectionRefusedError:
        return False
    return True


def _is_there(text: str) -> bool:
    """Return whether an address takes clients: it accepts, or a datagram to it is not refused."""
    address = Address.parse(text)
    accepts = kinds.of_address(address).accepts(address)
    with socket.socket(address.family, socket.SOCK_STREAM if accepts else socket.SOCK_DGRAM) as client:
        client.settimeout(_ANSWER_S)
        try:
            client.connect(address.sockaddr)
            if not accepts:
                client.send(b"")
                client.send(b"")  # fails if the first one was refused (udp(7))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True
