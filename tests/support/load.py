#!/usr/bin/env python3
"""Make an open-loop load of new TCP connections at a fixed rate, and record the outcome of every connection.

Connection k is scheduled at start + k/rate, and its wait counts from that moment, also when the server or this
generator is late. Each one sends an HTTP/1.0 request, so that the server closes first, and reads to
EOF. As a library it runs in a separate process, so that the GIL of the caller does not delay it::

    with Load([("127.0.0.1", 8000)], rate=2000) as load:
        load.mark("reload 1")
        ...
        result = load.stop()
    assert result.total.failed == 0, result.table()

As a command: ``python -m tests.support.load --rate 2000 --duration 10 127.0.0.1:8000``. Its exit status is 1 if
anything failed.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import math
import os
import re
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

REQUEST = b"GET / HTTP/1.0\r\nHost: x\r\n\r\n"
OUTCOMES = ("ok", "refused", "reset", "timed_out", "bad_status", "other")
CLASS_OF_ERRNO = {"ECONNREFUSED": "refused", "ECONNRESET": "reset", "EPIPE": "reset", "ETIMEDOUT": "timed_out"}

# One source address has 28,000 ports by default, and each may rest a minute in TIME_WAIT: 470 connections a second.
# Eight allow 3,700. With IP_BIND_ADDRESS_NO_PORT (linux/in.h) the port is chosen at connect(), per destination.
LOOPBACK_SOURCES = tuple(f"127.0.0.{last}" for last in range(2, 10))
IP_BIND_ADDRESS_NO_PORT = 24

# After a stall the backlog is launched in slices, with the replies read in between.
LAUNCHES_IN_A_ROW = 32
# Waits are kept in buckets 1 % wide: a snapshot costs the same after an hour as after a second.
BUCKETS_PER_E = 100


@dataclass(frozen=True, slots=True)
class Phase:
    """The outcomes of the connections *scheduled* in one phase. Waits, in seconds, count from the scheduled time.

    ``longest_wait_s`` is over every outcome; ``p50_s`` and ``p99_s`` (to 1 %, rounded up) are over those answered or
    timed out, since quick refusals would lower them. ``in_flight`` have no outcome yet. ``causes`` counts the causes of
    failures (errno names, ``EOF``, ``status 503``). ``bodies`` counts the first line of each body, if asked for.
    """

    name: str
    tried: int
    ok: int
    refused: int
    reset: int
    timed_out: int
    bad_status: int
    other: int
    in_flight: int
    longest_wait_s: float
    p50_s: float
    p99_s: float
    generator_lag_max_s: float
    causes: dict[str, int]
    bodies: dict[str, int]

    @property
    def failed(self) -> int:
        """Return the number of connections with an outcome other than ok."""
        return self.tried - self.ok - self.in_flight

    @property
    def longest_stall_s(self) -> float:
        """Return the longest wait without the generator's own lateness, which may be seconds on a busy machine."""
        return max(0.0, self.longest_wait_s - self.generator_lag_max_s)


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a load so far, or, from ``stop()``, of all of it. ``duration_s`` is the length of the schedule."""

    total: Phase
    phases: tuple[Phase, ...]
    duration_s: float
    generator_cpu_s: float

    def phase(self, name: str) -> Phase:
        """Return the phase of that name. Raises KeyError if it was never marked."""
        return {phase.name: phase for phase in self.phases}[name]

    def table(self) -> str:
        """Return a table with one line for each phase and one for the total, waits in milliseconds."""
        counts = ("tried", *OUTCOMES)
        times = {"longest": "longest_wait_s", "p50": "p50_s", "p99": "p99_s", "lag": "generator_lag_max_s"}
        rows = [["phase", *counts, *(f"{title} ms" for title in times)]]
        for phase in (*(self.phases if len(self.phases) > 1 else ()), self.total):
            waits = (f"{getattr(phase, name) * 1e3:.1f}" for name in times.values())
            rows.append([phase.name, *(str(getattr(phase, name)) for name in counts), *waits])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        return "\n".join([*lines, *(f"{cause}: {count}" for cause, count in sorted(self.total.causes.items()))])

    @classmethod
    def from_json(cls, reply: dict[str, Any]) -> Result:
        """Build a result from the output of ``dataclasses.asdict``."""
        phases = tuple(Phase(**phase) for phase in reply["phases"])
        return cls(Phase(**reply["total"]), phases, reply["duration_s"], reply["generator_cpu_s"])


@dataclass(slots=True)
class Tally:
    """The counters of a phase that has not ended."""

    tried: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    bodies: Counter[str] = field(default_factory=Counter)
    waits: Counter[int] = field(default_factory=Counter)
    longest_wait_s: float = 0.0
    lag_max_s: float = 0.0

    def record(self, outcome: str, wait_s: float, cause: str) -> None:
        self.outcomes[outcome] += 1
        self.longest_wait_s = max(self.longest_wait_s, wait_s)
        if outcome in ("ok", "bad_status", "timed_out"):
            self.waits[math.ceil(math.log(max(wait_s, 1e-6)) * BUCKETS_PER_E)] += 1
        if cause:
            self.causes[cause] += 1

    def add(self, other: Tally) -> None:
        self.tried += other.tried
        for mine in ("outcomes", "causes", "bodies", "waits"):
            getattr(self, mine).update(getattr(other, mine))
        self.longest_wait_s = max(self.longest_wait_s, other.longest_wait_s)
        self.lag_max_s = max(self.lag_max_s, other.lag_max_s)

    def percentile_s(self, share: float) -> float:
        rank = share * self.waits.total()
        for bucket, count in sorted(self.waits.items()):
            rank -= count
            if rank <= 0:
                return min(math.exp(bucket / BUCKETS_PER_E), self.longest_wait_s)
        return 0.0

    def phase(self, name: str) -> Phase:
        return Phase(
            name=name,
            tried=self.tried,
            in_flight=self.tried - self.outcomes.total(),
            longest_wait_s=self.longest_wait_s,
            p50_s=self.percentile_s(0.50),
            p99_s=self.percentile_s(0.99),
            generator_lag_max_s=self.lag_max_s,
            causes=dict(self.causes),
            bodies=dict(self.bodies),
            **{outcome: self.outcomes[outcome] for outcome in OUTCOMES},
        )


class Target:
    """A target of connections, with its source addresses and the number of connections in flight."""

    def __init__(self, host: str, port: int) -> None:
        self.name = (host, port)
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.family, self.address = family, address
        loopback = self.family == socket.AF_INET and str(self.address[0]).startswith("127.")
        self.sources = itertools.cycle(LOOPBACK_SOURCES if loopback else [None])
        self.in_flight = 0

    def connect(self) -> socket.socket:
        """Return a socket that connects to the target. The caller owns it. On OSError no socket stays open."""
        sock = socket.socket(self.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            if (source := next(self.sources)) is not None:
                sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((source, 0))
            if (error := sock.connect_ex(self.address)) not in (0, errno.EINPROGRESS):
                raise OSError(error, os.strerror(error))
        except OSError:
            sock.close()
            raise
        return sock


@dataclass(slots=True, eq=False)
class Connection:
    """A connection in flight. It owns its socket, which is closed once, with the outcome."""

    sock: socket.socket
    target: Target
    tally: Tally
    due: float
    sent: bool = False
    reply: bytes = b""
    done: bool = False


class Generator:
    """The generator of a load: one thread, one epoll, non-blocking sockets. ``run`` may be called once."""

    def __init__(
        self, targets: Iterable[tuple[str, int]], *, rate: float, timeout_s: float, expect_status: int, bodies: bool
    ) -> None:
        self._targets = deque(Target(host, port) for host, port in targets)
        if not self._targets or rate <= 0:
            raise ValueError("a load needs a target and a rate above 0")
        self._rate, self._timeout_s, self._expect_status, self._bodies = rate, timeout_s, expect_status, bodies
        self._tallies = {"start": Tally()}
        self._tally = self._tallies["start"]
        self._epoll = select.epoll()
        self._open: dict[int, Connection] = {}
        self._by_deadline: deque[Connection] = deque()
        self._commands: deque[tuple[float, dict[str, Any]]] = deque()
        self._unread = b""
        self._draining: Target | None = None
        self._start = self._end = time.monotonic()
        self._slot = 0

    def run(self, duration_s: float = math.inf, control_fd: int | None = None) -> Result:
        """Schedule for ``duration_s`` or until told to stop, wait for what is in flight, and return the result."""
        self._start = time.monotonic()
        self._end = self._start + duration_s
        if control_fd is not None:
            self._epoll.register(control_fd, select.EPOLLIN)
            self._say({"ready": True})
        while True:
            self._launch_due(time.monotonic())
            now = time.monotonic()
            self._expire(now)
            due = self._due()
            if due >= self._end and not self._open and not self._commands:
                return self.result()
            wake = now if self._commands else min(due if due < self._end else math.inf, self._next_deadline())
            # The timeout of epoll has steps of 1 ms, which is two connections at 2,000 a second; select's is finer.
            select.select([self._epoll], [], [], None if wake == math.inf else max(0.0, wake - now))
            for fd, _ in self._epoll.poll(0):
                if fd == control_fd:
                    self._read_commands(fd)
                else:
                    self._progress(self._open[fd])

    def result(self) -> Result:
        """Return the result so far."""
        total = Tally()
        for tally in self._tallies.values():
            total.add(tally)
        phases = tuple(tally.phase(name) for name, tally in self._tallies.items())
        scheduled_s = min(self._end, time.monotonic()) - self._start
        return Result(total.phase("total"), phases, scheduled_s, time.process_time())

    def _due(self) -> float:
        return self._start + self._slot / self._rate

    def _next_deadline(self) -> float:
        return self._by_deadline[0].due + self._timeout_s if self._by_deadline else math.inf

    def _launch_due(self, now: float) -> None:
        """Launch what is due by ``now``; a command takes effect between the connections due before and after it."""
        for _ in range(LAUNCHES_IN_A_ROW):
            due = self._due()
            if self._commands and (self._commands[0][0] <= due or due >= self._end):
                at, command = self._commands.popleft()
                self._obey(at, command)
            elif due <= now and due < self._end:
                self._slot += 1
                self._launch(due)
            else:
                return

    def _launch(self, due: float) -> None:
        tally, target = self._tally, self._targets[0]
        self._targets.rotate(-1)
        tally.tried += 1
        tally.lag_max_s = max(tally.lag_max_s, time.monotonic() - due)
        try:
            sock = target.connect()
        except OSError as error:
            outcome, cause = _class_of(error)
            tally.record(outcome, time.monotonic() - due, cause)
            return
        connection = self._open[sock.fileno()] = Connection(sock, target, tally, due)
        self._by_deadline.append(connection)
        target.in_flight += 1
        self._epoll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        self._progress(connection)  # on loopback the handshake is mostly over when connect() returns

    def _progress(self, connection: Connection) -> None:
        try:
            if not connection.sent:
                connection.sock.send(REQUEST)
                connection.sent = True
            while chunk := connection.sock.recv(65536):
                connection.reply += chunk
        except BlockingIOError:
            return
        except OSError as error:
            outcome, cause = _class_of(error)
        else:
            outcome, cause = self._judge(connection)
        self._finish(connection, outcome, cause)

    def _judge(self, connection: Connection) -> tuple[str, str]:
        """Return the outcome of a reply that ended with EOF, and its cause."""
        head, end_of_head, body = connection.reply.partition(b"\r\n\r\n")
        if connection.reply and not connection.reply.startswith(b"HTTP/1."[: len(connection.reply)]):
            return "bad_status", "not HTTP/1"
        length = re.search(rb"\r\ncontent-length:[ \t]*(\d+)", head, re.IGNORECASE)
        if not end_of_head or (length and len(body) < int(length[1])):
            return "reset", "EOF"
        if self._bodies:
            connection.tally.bodies[body.partition(b"\n")[0].decode(errors="replace").rstrip("\r")] += 1
        status = head.split(b"\r\n", 1)[0].split(b" ")[1:2]
        if status == [b"%d" % self._expect_status]:
            return "ok", ""
        return "bad_status", f"status {b''.join(status).decode(errors='replace')}"

    def _finish(self, connection: Connection, outcome: str, cause: str) -> None:
        wait_s = time.monotonic() - connection.due
        if outcome in ("ok", "bad_status") and wait_s > self._timeout_s:
            outcome, cause = "timed_out", "late reply"
        connection.tally.record(outcome, wait_s, cause)
        del self._open[connection.sock.fileno()]
        connection.sock.close()
        connection.done = True
        connection.target.in_flight -= 1
        self._answer_drained()

    def _expire(self, now: float) -> None:
        while self._by_deadline and (self._by_deadline[0].done or self._next_deadline() <= now):
            connection = self._by_deadline.popleft()
            if not connection.done:
                self._finish(connection, "timed_out", "no reply")

    def _read_commands(self, fd: int) -> None:
        chunk = os.read(fd, 65536)
        if not chunk:
            raise EOFError("the process that started this load is gone")
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        self._commands.extend((time.monotonic(), json.loads(line)) for line in lines)

    def _obey(self, at: float, command: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"done": True}
        match command:
            case {"do": "mark", "name": str(name)}:
                self._tally = self._tallies.setdefault(name, Tally())
            case {"do": "add_target", "host": str(host), "port": int(port)}:
                try:
                    self._targets.append(Target(host, port))
                except OSError as error:
                    answer = {"error": f"{host}:{port}: {error}"}
            case {"do": "remove_target", "host": str(host), "port": int(port)}:
                found = [target for target in self._targets if target.name == (host, port)]
                if found and len(self._targets) > 1:
                    self._targets.remove(found[0])
                    self._draining = found[0]
                    self._answer_drained()
                    return
                answer = {"error": f"{host}:{port} is {'the only' if found else 'not a'} target"}
            case {"do": "snapshot"}:
                answer = asdict(self.result())
            case {"do": "stop"}:
                self._end = min(self._end, at)
                return  # the answer is the result, as soon as no connection is in flight
            case _:
                answer = {"error": f"unknown command: {command}"}
        self._say(answer)

    def _answer_drained(self) -> None:
        if self._draining is not None and self._draining.in_flight == 0:
            self._draining = None
            self._say({"done": True})

    def _say(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), flush=True)


def _class_of(error: OSError) -> tuple[str, str]:
    name = errno.errorcode.get(error.errno or 0, "unknown")
    return CLASS_OF_ERRNO.get(name, "other"), name


class LoadError(Exception):
    """The load refused a command, or its process has ended."""


class Load:
    """A load in a separate process, from the start of the context to ``stop()`` or the end of the context.

    ``rate`` is in connections a second, over all targets in turn. A connection without a complete reply ``timeout_s``
    after its scheduled time is timed out. A status other than ``expect_status`` is an outcome of its own. With
    ``bodies``, the first line of every body is counted. The methods may be called from any thread, and raise LoadError.
    """

    def __init__(
        self,
        targets: Iterable[tuple[str, int]],
        *,
        rate: float,
        timeout_s: float = 5.0,
        expect_status: int = 200,
        bodies: bool = False,
    ) -> None:
        options = [f"--rate={rate}", f"--timeout={timeout_s}", f"--expect-status={expect_status}"]
        names = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in targets]
        self._command = [sys.executable, "-I", __file__, "--control", *options, *["--bodies"] * bodies, *names]
        self._answer_timeout_s = timeout_s + 30.0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # Its own process group: Ctrl-C is for the caller, who then leaves the context.
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
        try:
            self._answer(self._process)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    @property
    def pid(self) -> int:
        """Return the PID of the process that makes the load."""
        return self._running().pid

    def mark(self, name: str) -> None:
        """Start a phase. Connections scheduled after this returns count in it. A known name resumes its phase."""
        self._ask(do="mark", name=name)

    def add_target(self, host: str, port: int) -> None:
        """Add a target to those that connections go to in turn."""
        self._ask(do="add_target", host=host, port=port)

    def remove_target(self, host: str, port: int) -> None:
        """Stop scheduling to a target, and return when every connection to it has an outcome."""
        self._ask(do="remove_target", host=host, port=port)

    def snapshot(self) -> Result:
        """Return the result so far. Connections in flight are counted as ``in_flight``."""
        return Result.from_json(self._ask(do="snapshot"))

    def stop(self) -> Result:
        """Stop scheduling, wait until every connection has an outcome, and return the result."""
        return Result.from_json(self._ask(do="stop"))

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise LoadError("the load is not running: use it as a context manager")
        return self._process

    def _ask(self, **command: str | int) -> dict[str, Any]:
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(command).encode() + b"\n")
                process.stdin.flush()
            except BrokenPipeError:
                raise LoadError(f"the load has ended, with exit status {process.wait()}") from None
            return self._answer(process)

    def _answer(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], self._answer_timeout_s)[0]:
            raise LoadError(f"no answer from the load (pid {process.pid}) within {self._answer_timeout_s:.0f} s")
        line = process.stdout.readline()
        if not line:
            raise LoadError(f"the load has ended, with exit status {process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LoadError(answer["error"])
        return answer


def target_of(text: str) -> tuple[str, int]:
    """Parse ``127.0.0.1:8000`` or ``[::1]:8000``. Raises ValueError for any other text."""
    host, _, port = text.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. With ``--control``, read JSON commands from stdin and answer each on stdout."""
    parser = argparse.ArgumentParser(description="An open-loop load of new TCP connections.")
    parser.add_argument("targets", nargs="+", type=target_of, metavar="HOST:PORT")
    parser.add_argument("--rate", type=float, default=1000.0, help="new connections a second (%(default)s)")
    parser.add_argument("--duration", type=float, default=math.inf, metavar="S", help="seconds (until Ctrl-C)")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="S", help="seconds to wait (%(default)s)")
    parser.add_argument("--expect-status", type=int, default=200, metavar="STATUS", help="%(default)s")
    parser.add_argument("--bodies", action="store_true", help="count the first line of every body")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--control", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    generator = Generator(
        options.targets,
        rate=options.rate,
        timeout_s=options.timeout,
        expect_status=options.expect_status,
        bodies=options.bodies,
    )
    try:
        result = generator.run(options.duration, sys.stdin.fileno() if options.control else None)
    except KeyboardInterrupt:
        result = generator.result()
    except EOFError:
        return 1
    if options.control or options.json:
        print(json.dumps(asdict(result)), flush=True)
    else:
        print(result.table())
        print(f"generator: {result.generator_cpu_s:.1f} s of processor in {result.duration_s:.1f} s")
    return int(result.total.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
