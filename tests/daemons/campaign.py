"""Restart a daemon again and again under load, as its example says, and count what its clients lose.

``python -m tests.daemons.campaign`` does so for the rows of the table, and prints what it saw: also what a daemon does
to its listener. Its exit status is 1 if clients of a daemon were lost that is started as docs/daemons.md says.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import multibinder
from multibinder.pytest_plugin import RunningBinder, running_binder
from tests.daemons.look import look_at
from tests.daemons.ready import answers, waits_for_clients
from tests.daemons.row import Example, Row, Unit, version
from tests.daemons.rows import ROWS
from tests.daemons.tcp_load import TcpQuestionLoad
from tests.daemons.udp_load import UdpLoad
from tests.support.addresses import own_host
from tests.support.commands import clean_environment
from tests.support.load import Load
from tests.support.restarts import PATIENCE_S, SERVES_S, Copy, Outcome, Start, Way, copies, has_said

#: New connections, or datagrams, a second.
RATE = 500
#: A daemon that is held up for so many seconds has a queue of 100 clients.
HELD_UP_S = 0.2
PROGRAM = str(Path(sys.executable).with_name("multibinder"))
#: How long ``multibinder reload`` may take, in seconds.
_RELOADS_S = 60


def ways_of(row: Row) -> list[Way]:
    """Return the ways to restart a daemon that its row has."""
    if row.ways:
        return list(row.ways)
    reload = [Way.RELOAD] if row.has_run and not row.is_bare else []
    return [Way.OVERLAP, Way.STOP_THEN_START, Way.BUSY_STOP, *reload, *([Way.OWN] if row.own_reload else [])]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a daemon is tried: a copy of its example, an address of its own, and a binder.

    Clients connect to ``front``, which is ``listener`` if the row has no front.
    """

    row: Row
    directory: Path
    host: str
    example: Example
    environment: Mapping[str, str]
    listener: multibinder.SharedListener
    front: multibinder.SharedListener

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.row.port

    def start_of(self, unit: Unit) -> Start:
        """Return how a copy of the daemon is started by ``multibinder exec``."""
        is_ready = has_said(self.row.ready, self.row.times) if self.row.ready else waits_for_clients(self.listener)
        return self._start(unit, is_ready)

    def start_of_front(self, unit: Unit) -> Start:
        return self._start(unit, waits_for_clients(self.front))

    def _start(self, unit: Unit, is_ready: Callable[[Copy], bool]) -> Start:
        environment = {**self.environment, **unit.environment, **_of_the_binder(self.environment)}
        return Start(self.row.name, unit.command, environment, is_ready, unit.directory, unit.stop_signal)

    def start_of_run(self) -> Start:
        """Return how an instance of the daemon is started by ``multibinder run``."""
        command = [PROGRAM, "run", "--name", "daemon", "--config", str(self.example.config())]
        return Start(f"{self.row.name} by run", command, self.environment, answers(self.address, self.row.question))

    def load(self, rate: float) -> Load | UdpLoad | TcpQuestionLoad:
        if self.row.question is not None and self.row.over_tcp:
            return TcpQuestionLoad(self.address, rate=rate, timeout_s=PATIENCE_S, question=self.row.question)
        if self.row.question is not None:
            return UdpLoad(self.address, rate=rate, timeout_s=PATIENCE_S, question=self.row.question)
        return Load([self.address], rate=rate, timeout_s=PATIENCE_S, bodies=self.row.says_pid)

    def reload(self) -> str:
        """Have ``run`` replace the daemon. Return the exit status, and what the command said if it is not 0."""
        done = subprocess.run(
            [PROGRAM, "reload", "daemon"],
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=_RELOADS_S,
            check=False,
        )
        return "0" if done.returncode == 0 else f"{done.returncode} of the reload: {done.stdout}{done.stderr}"


def _of_the_binder(environment: Mapping[str, str]) -> dict[str, str]:
    return {multibinder.SOCKET_VARIABLE: environment[multibinder.SOCKET_VARIABLE]}


@contextlib.contextmanager
def place(row: Row, directory: Path, binder: RunningBinder) -> Iterator[Place]:
    """Yield a place for a daemon in an empty directory. Its front runs, if it has one, until the end of the block."""
    host = own_host()
    example = row.copied(directory / "example", host)
    (directory / "run").mkdir(mode=0o700)
    environment = clean_environment(
        {multibinder.SOCKET_VARIABLE: str(binder.socket_path), "MULTIBINDER_RUN_RUNTIME_DIR": str(directory / "run")}
    )
    with contextlib.ExitStack() as stack:
        listener, front = (
            stack.enter_context(multibinder.bind(address, socket_path=binder.socket_path, **options))
            for address, options in (example.bind(), example.bind_of_front())
        )
        found = Place(row, directory, host, example, environment, listener, front)
        if unit := example.front():
            (directory / "front").mkdir()
            stack.enter_context(copies(found.start_of_front(unit), directory / "front")).start()
        yield found


def restart(row: Row, rounds: int, way: Way, *, directory: Path, binder: RunningBinder, rate: float = RATE) -> Outcome:
    """Restart a daemon under load. ``directory`` is empty; it becomes that of the example and of logs."""
    ends: list[str] = []
    with place(row, directory, binder) as there:
        start = there.start_of_run() if way is Way.RELOAD else there.start_of(there.example.unit())
        with copies(start, directory) as running:
            first = running.start()
            with there.load(rate) as load:
                threading.Event().wait(SERVES_S)
                for _ in range(rounds):
                    if way is Way.RELOAD:
                        ends.append(there.reload())
                        threading.Event().wait(SERVES_S)
                    elif way is Way.OWN:
                        assert row.own_reload is not None
                        row.own_reload(first)
                        threading.Event().wait(SERVES_S)
                    else:
                        running.restart(way, held_up_s=HELD_UP_S if way is Way.BUSY_STOP else 0.0)
                seen = load.stop()
            running.stop()
        return Outcome.of(seen, ends + running.ends, running.logs)


def looks(row: Row) -> list[str]:
    """Start and stop a daemon, and return what it did to a listener of its address, and to one with a path."""
    with (
        # The binder puts back the paths that are removed, so that it ends before them.
        tempfile.TemporaryDirectory(prefix="mb-") as directory,
        running_binder() as binder,
        place(row, Path(directory), binder) as there,
    ):
        unit = there.example.unit()
        with copies(there.start_of(unit), there.directory) as running:
            seen = [str(look_at(there.listener, running))]
        if not row.has_paths:
            return seen
        address = f"{'uxdg' if row.question else 'unix'}@{directory}/socket"
        with multibinder.bind(address, socket_path=binder.socket_path) as listener:
            words = [re.sub(rf"^(?:udp@)?{re.escape(there.host)}:{row.port}", address, word) for word in unit.command]
            start = replace(there, listener=listener).start_of(replace(unit, command=words))
            with copies(start, there.directory) as running:
                return [*seen, f"with a path: {look_at(listener, running)}"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Restart the daemons of docs/daemons.md under load.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only rows whose name has this part")
    parser.add_argument("--rounds", type=int, default=10, help="restarts in each way (%(default)s)")
    parser.add_argument("--rate", type=float, default=RATE, help="connections or datagrams a second (%(default)s)")
    parser.add_argument("--way", action="append", type=str.upper, choices=[way.name for way in Way], help="only so")
    parser.add_argument("--logs", type=Path, metavar="DIRECTORY", help="write the output of the daemons there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))  # which ends the daemons too
    lost = 0
    for row in ROWS:
        if options.names and not any(part.lower() in row.name.lower() for part in options.names):
            continue
        if absent := row.missing():
            print(f"{row.name}: skipped, {', '.join(absent)} not installed")
            continue
        print(f"{row.name} ({', '.join(f'{package} {version(package)}' for package in row.packages)})", flush=True)
        if not options.way:
            try:
                print("".join(f"    {line}\n" for line in looks(row)), end="", flush=True)
            except (RuntimeError, pytest.fail.Exception) as error:  # it does not start
                print(f"    {error}", flush=True)
        for way in ways_of(row):
            if options.way and way.name not in options.way:
                continue
            with tempfile.TemporaryDirectory(prefix="mb-") as directory, running_binder() as binder:
                try:
                    outcome = restart(
                        row, options.rounds, way, directory=Path(directory), binder=binder, rate=options.rate
                    )
                except (RuntimeError, pytest.fail.Exception) as error:  # it does not start
                    print(f"    {way.name.lower()}: {error}", flush=True)
                    lost += 1
                    continue
            lost += 0 if row.is_bare or row.loses else outcome.lost
            load = f"load {os.getloadavg()[0]:.1f}"
            lines = [f"{way.name.lower().replace('_', ' '):15}  {outcome}, {load}", *outcome.complaints()]
            print("".join(f"    {line}\n" for line in lines), end="", flush=True)
            if options.logs:
                options.logs.mkdir(parents=True, exist_ok=True)
                (options.logs / f"{row.name} {way.name}").write_text(outcome.log)
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
