"""Measure what the wrapper adds to a start, a reload and a crash of HAProxy, beside HAProxy alone in the same run.

    python -m benchmarks.start

Two HAProxy with the same configuration take turns: one alone, one through ``multibinder-haproxy``. Times end when a
client has the answer of the new worker, and for a ``reload`` command when the command has ended, too. They are medians:
first on an idle host, then while new connections arrive at the HAProxy that is measured. At last many instances of
each are reloaded, and their CPU time is compared: that of the commands and masters, with all their children.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import rig
from multibinder.kernel.process import children_of
from tests.support.load import Load

#: The aims: at most so many milliseconds more than HAProxy alone.
AIM_START_MS, AIM_RELOAD_MS = 50, 150

_WRAPPER = str(Path(sys.executable).parent / "multibinder-haproxy")
_HAPROXY = "/usr/sbin/haproxy"
#: Prefixes of variables that the children must not inherit, because they address other processes.
_FOREIGN_VARIABLES = ("MULTIBINDER_", "HAPROXY", "LISTEN_", "NOTIFY_SOCKET", "JOURNAL_STREAM")
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_TRY_AGAIN_S = 0.001
_PORT = 20_000
_CONFIG = """# change {change}
global
    maxconn 4000
defaults
    mode http
    timeout client 10s
    timeout connect 10s
    timeout server 10s
frontend web
    bind {bind}
    http-request return status 200 content-type text/plain lf-string "%pid\\n"
"""


class Alone:
    """A HAProxy on its own socket. The benchmark is its supervisor, without a pause before a restart."""

    title = "alone"

    def __init__(self, directory: Path, name: str, host: str, port: int = _PORT) -> None:
        self.directory, self.name, self.host, self.port = directory, name, host, port
        self.config = directory / f"{name}.cfg"
        self.cli = str(directory / f"{name}.sock")
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN_VARIABLES)}
        self.master: subprocess.Popen[bytes]

    @property
    def bind(self) -> str:
        return f"{self.host}:{self.port}"

    def change(self) -> None:
        """Change the configuration without a change of its meaning."""
        self.config.write_text(_CONFIG.format(bind=self.bind, change=time.monotonic_ns()))

    def command(self) -> list[str]:
        return [_HAPROXY, "-Ws", "-S", self.cli, "-f", str(self.config)]

    def start(self) -> None:
        with (self.directory / f"{self.name}.log").open("ab") as log:
            self.master = subprocess.Popen(
                self.command(), env=self.environment, cwd=self.directory, stdout=log, stderr=log
            )

    def end(self) -> None:
        self.master.terminate()
        self.master.wait(rig.PATIENCE_S)

    def restart(self) -> float:
        """Return the seconds from a start to the first answer. HAProxy has ended before, as a supervisor ends it."""
        self.end()
        began = time.perf_counter()
        self.start()
        self.await_answer()
        return time.perf_counter() - began

    def crash(self) -> float:
        """Return the seconds from a SIGKILL of master and workers, with a start at once, to the next answer."""
        victims = [self.master.pid, *children_of(self.master.pid)]
        began = time.perf_counter()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        self.master.wait(rig.PATIENCE_S)
        self.start()
        self.await_answer({*victims})
        return time.perf_counter() - began

    def reload_by_cli(self) -> float:
        """Return the seconds from 'reload' on HAProxy's master CLI to the first answer of the new worker."""
        old = {*children_of(self.master.pid)}
        began = time.perf_counter()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as cli:
            cli.connect(self.cli)
            cli.sendall(b"reload\n")
            self.await_answer(old)
            return time.perf_counter() - began

    def reload(self) -> float:
        """Return the seconds that an operator's reload takes."""
        return self.reload_by_cli()

    def reload_after_a_change(self) -> float:
        self.change()
        return self.reload()

    def cli_answers(self) -> bool:
        """Return whether the master has ended its re-execs: HAProxy up to 3.0 needs two for a reload."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as cli:
                cli.connect(self.cli)
                cli.sendall(b"show proc\n")
                return b"master" in cli.recv(4096)
        except OSError:
            return False

    def await_answer(self, not_from: set[int] | None = None) -> None:
        """Return when a worker answers that is none of these."""
        deadline = time.monotonic() + rig.PATIENCE_S
        while time.monotonic() < deadline:
            pid = self._ask()
            if pid and pid not in (not_from or ()):
                return
            time.sleep(_TRY_AGAIN_S)
        sys.exit(f"{self.title}: no answer in {rig.PATIENCE_S:g} s; {self.directory}/{self.name}.log says why")

    def _ask(self) -> int:
        """Return the PID of the worker that answers a request; 0 if none does."""
        try:
            with socket.create_connection((self.host, self.port), timeout=rig.PATIENCE_S) as client:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                reply = b""
                while chunk := client.recv(4096):
                    reply += chunk
        except ConnectionError:
            return 0
        return int(reply.rpartition(b"\r\n\r\n")[2] or 0)


class OnBinder(Alone):
    """A HAProxy on the binder's socket, through ``multibinder-haproxy``."""

    title = "multibinder"

    def __init__(self, directory: Path, name: str, host: str, port: int = _PORT) -> None:
        super().__init__(directory, name, host, port)
        self.config = directory / f"{name}.cfg.j2"
        self.environment["MULTIBINDER_SOCK"] = str(directory / "mb.sock")
        self.environment["MULTIBINDER_HAPROXY_RUNTIME_DIR"] = str(directory / "run")

    @property
    def bind(self) -> str:
        return f"{{{{ bind_tcp('{self.host}', {self.port}) }}}}"

    def command(self) -> list[str]:
        return [_WRAPPER, "run", "--name", self.name, "--", *super().command()]

    def reload(self) -> float:
        old = {*children_of(self.master.pid)}
        began = time.perf_counter()
        self.execute("reload", self.name)
        self.await_answer(old)
        return time.perf_counter() - began

    def execute(self, *arguments: str) -> float:
        """Run a command of ours, and return the CPU time that it took, with its children."""
        with (self.directory / "commands.log").open("ab") as log:
            process = subprocess.Popen(
                [_WRAPPER, *arguments], env=self.environment, cwd=self.directory, stdout=log, stderr=log
            )
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{arguments} failed: {(self.directory / 'commands.log').read_text()}")
        return usage.ru_utime + usage.ru_stime


@dataclass
class Measurement:
    """One line of the table: what is measured, by which method of a side, and what was measured."""

    title: str
    measure: Callable[[Alone], float]
    aim_ms: int
    alone: list[float] = field(default_factory=list)
    on_binder: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        alone, ours = (statistics.median(times) * 1e3 for times in (self.alone, self.on_binder))
        times = f"{alone:>8.0f} ms{ours:>12.0f} ms{ours - alone:>+9.0f} ms{ours / alone:>7.1f}"
        return f"{self.title:<44}{times}   {rig.verdict(ours - alone <= self.aim_ms, f'+{self.aim_ms} ms')}"


class Orphans:
    """The processes that the sides leave behind, such as ``settle``. This process is their reaper.

    ``known`` are the processes that this one started and that live on.
    """

    def __init__(self) -> None:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.known: set[int] = set()

    def wait(self) -> float:
        """Wait until every orphan has ended, and return the CPU time that they took."""
        spent_s = 0.0
        for pid in {*children_of(os.getpid())} - self.known:
            _, _, usage = os.wait4(pid, 0)
            spent_s += usage.ru_utime + usage.ru_stime
        return spent_s


def main() -> None:
    parser = argparse.ArgumentParser(description=rig.summary_of(__doc__))
    parser.add_argument("--rounds", type=int, default=15, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=2_000, help="new connections a second (default: %(default)s)")
    parser.add_argument("--instances", type=int, default=100, help="for 'reload --all' (default: %(default)s)")
    arguments = parser.parse_args()
    host = f"127.{100 + os.getpid() % 100}.7"
    orphans = Orphans()
    with rig.directory() as directory, rig.binder(directory / "mb.sock", quiet=True) as binder:
        orphans.known.add(binder.pid)
        alone = Alone(directory, "alone", f"{host}.1")
        on_binder = OnBinder(directory, "bench", f"{host}.2")
        with running([alone, on_binder], orphans):
            measure("idle", alone, on_binder, orphans, arguments.rounds)
            with Load([(alone.host, _PORT)], rate=arguments.rate, timeout_s=rig.PATIENCE_S) as load:
                pid = load.pid
                orphans.known.add(pid)
                title = f"{arguments.rate:,} connections a second"
                measure(title, alone, on_binder, orphans, arguments.rounds, load)
                print(load.stop().table())
            orphans.known.discard(pid)
        if arguments.instances:
            reload_all(directory, f"{host}.3", orphans, arguments.instances)


@contextlib.contextmanager
def running(sides: Sequence[Alone], orphans: Orphans) -> Iterator[None]:
    """Start each side, and end it after the block."""
    started: list[Alone] = []
    try:
        for side in sides:
            side.change()
            side.start()
            started.append(side)
            orphans.known.add(side.master.pid)
        for side in sides:
            side.await_answer()
        yield
    finally:
        for side in started:
            side.end()
            orphans.known.discard(side.master.pid)
        orphans.wait()


def measure(
    title: str, alone: Alone, on_binder: OnBinder, orphans: Orphans, rounds: int, load: Load | None = None
) -> None:
    """Take every measurement in turn on both sides. ``load`` sends its connections to the side that is measured."""
    measurements = [
        Measurement("start, nothing changed", Alone.restart, AIM_START_MS),
        Measurement("SIGKILL, and a start at once", Alone.crash, AIM_START_MS),
        Measurement("reload on HAProxy's CLI, nothing changed", Alone.reload_by_cli, AIM_START_MS),
        Measurement("reload command, nothing changed", lambda side: side.reload(), AIM_RELOAD_MS),
        Measurement("reload command, template changed", lambda side: side.reload_after_a_change(), AIM_RELOAD_MS),
    ]
    target = alone
    for _ in range(rounds):
        for measurement in measurements:
            for side, times in ((alone, measurement.alone), (on_binder, measurement.on_binder)):
                if load:
                    if side is not target:
                        load.add_target(side.host, side.port)
                        load.remove_target(target.host, target.port)
                        target = side
                    load.mark(side.title)
                settle(side, orphans)
                times.append(measurement.measure(side))
                orphans.known.add(side.master.pid)
    print(f"\n{title + f' (median of {rounds})':<44}{'alone':>11}{'multibinder':>15}{'more':>12}{'ratio':>7}")
    print(*measurements, sep="\n", flush=True)


def settle(side: Alone, orphans: Orphans) -> None:
    """Return when the last measurement has left nothing to do: no old worker, and none of our processes."""
    rig.wait_until(lambda: _has_one_worker(side) and side.cli_answers(), side.master)
    side.await_answer()
    orphans.wait()


def reload_all(directory: Path, host: str, orphans: Orphans, count: int) -> None:
    """Reload many instances of each kind, and compare the CPU time."""
    alone = [Alone(directory, f"alone{number}", host, _PORT + number) for number in range(count)]
    on_binder = [OnBinder(directory, f"bench{number}", host, _PORT + count + number) for number in range(count)]
    with changed(alone, orphans):
        base_s, wall_s, _ = spent(alone, orphans, lambda: [side.reload() for side in alone])
    with changed(on_binder, orphans):
        used: list[float] = []
        masters_s, our_wall_s, orphans_s = spent(
            on_binder, orphans, lambda: used.append(on_binder[0].execute("reload", "--all"))
        )
    checks_s = sum(_check_s(side) for side in alone)
    print(f"\n{count} instances, each template changed: CPU time of a reload of all, in ms an instance")
    for title, seconds in (
        (f"HAProxy alone, its masters and workers (took {wall_s:.1f} s)", base_s),
        (f"on the binder, masters and workers (took {our_wall_s:.1f} s)", masters_s),
        ("'reload --all', and the programs that it runs", used[0]),
        ("processes that outlive the command or the re-exec (settle)", orphans_s),
        ("of this: 'haproxy -c'", checks_s),
        ("our part: less HAProxy alone, and less 'haproxy -c'", masters_s + used[0] + orphans_s - base_s - checks_s),
    ):
        print(f"{title:<64}{seconds / count * 1e3:>8.1f}", flush=True)


@contextlib.contextmanager
def changed(sides: Sequence[Alone], orphans: Orphans) -> Iterator[None]:
    """Run HAProxy on each side, whose configuration has changed since."""
    with running(sides, orphans):
        for side in sides:
            settle(side, orphans)
            side.change()
        yield


def spent(sides: Sequence[Alone], orphans: Orphans, action: Callable[[], object]) -> tuple[float, float, float]:
    """Reload all. Return the CPU time of HAProxy, the time until all is reloaded, and the CPU time of the orphans."""
    before = sum(map(_cpu_s, sides))
    began = time.perf_counter()
    action()
    wall_s = time.perf_counter() - began
    for side in sides:
        # The CPU time of an old worker counts when its master has waited for it.
        rig.wait_until(partial(_has_one_worker, side), side.master)
    orphans_s = orphans.wait()
    return sum(map(_cpu_s, sides)) - before, wall_s, orphans_s


def _has_one_worker(side: Alone) -> bool:
    return len(children_of(side.master.pid)) == 1


def _cpu_s(side: Alone) -> float:
    """Return the CPU time of a master, its workers, and those that it has waited for."""
    return sum(map(rig.cpu_s, [side.master.pid, *children_of(side.master.pid)]))


def _check_s(side: Alone) -> float:
    """Return the CPU time of ``haproxy -c`` for a side's configuration."""
    process = subprocess.Popen(
        [_HAPROXY, "-c", "-f", side.config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
