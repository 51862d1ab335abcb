"""What a scrape costs: with 1, 1,000 and 10,000 listeners, for who waits, for the exporter, and for the binder.

Each listener is held by a process other than the binder, as in real life (there, many hold a few). A scrape and a bare
``status`` over the control socket are taken in turns, in one run, so that a busy machine is busy for both. The binder's
CPU seconds are those of its own process and of the child that looks through /proc for it.

    python -m benchmarks.exporter
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import multibinder

#: The aims with 10,000 listeners: Prometheus gives up a scrape after ten seconds by default; a scrape every 15 s takes
#: less than this share of a core from the binder.
SCRAPE_AIM_S = 5.0
BINDER_AIM = 0.05
_EVERY_S = 15.0

_COUNTS = (1, 1_000, 10_000)
_BATCH = 500
_OTHER_DESCRIPTORS = 1_200
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """Of one turn, in seconds."""

    took: float
    binder: float
    exporter: float
    size: int


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="of each kind, in turns (default: %(default)s)")
    arguments = parser.parse_args()

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    counts = [count for count in _COUNTS if hard == resource.RLIM_INFINITY or count + _OTHER_DESCRIPTORS <= hard]
    held: list[multibinder.SharedListener] = []
    with contextlib.ExitStack() as running:
        directory = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="multibinder-bench-")))
        socket_path = directory / "control.sock"
        binder = running.enter_context(_process("serve", "--quiet", "--socket", socket_path))
        _wait_for(socket_path.exists, binder)
        log = directory / "exporter.log"
        exporter = running.enter_context(
            _process("exporter", "--listen", "127.0.0.1:0", "--socket", socket_path,
                     "--runtime-dir", directory / "none", log=log)
        )  # fmt: skip
        _wait_for(lambda: "serving" in log.read_text(), exporter)
        found = re.search(r"serving http://127\.0\.0\.1:(\d+)/", log.read_text())
        port = int(found[1]) if found else 0
        client = running.enter_context(multibinder.Client(socket_path, timeout=60))
        print(f"{arguments.rounds} rounds; binder and exporter: their CPU time")
        print(f"{'listeners':>10}{'':>10}{'took':>12}{'binder':>12}{'exporter':>12}{'answer':>14}{'series':>10}")
        for count in counts:
            while len(held) < count:
                held += client.bind([("127.1.2.4", 0)] * min(count - len(held), _BATCH), owner="bench")
            series = _scrape(port).count(b"\n")
            turns = {"status": lambda: _status(socket_path), "scrape": lambda: _scrape(port)}
            costs: dict[str, list[Cost]] = {name: [] for name in turns}
            for _ in range(arguments.rounds):
                for name, turn in turns.items():
                    costs[name].append(_cost(turn, binder.pid, exporter.pid))
            for name, each in costs.items():
                took, size = (statistics.median(values) for values in ([c.took for c in each], [c.size for c in each]))
                # The clock of CPU time ticks a hundred times a second: over all rounds it tells more.
                spent, own = statistics.mean(c.binder for c in each), statistics.mean(c.exporter for c in each)
                of_series = f"{series:>10,}" if name == "scrape" else ""
                print(f"{count:>10,}{name:>10}{took * 1e3:>9,.1f} ms{spent * 1e3:>9,.1f} ms{own * 1e3:>9,.1f} ms"
                      f"{size:>12,.0f} B{of_series}", flush=True)  # fmt: skip
        share = spent / _EVERY_S
        print(f"with {counts[-1]:,} listeners and a scrape every {_EVERY_S:g} s, the binder spends {share:.1%} of a "
              f"core on them: {_verdict(share <= BINDER_AIM, f'{BINDER_AIM:.0%}')}")  # fmt: skip
        print(f"a scrape takes {took:.2f} s: {_verdict(took <= SCRAPE_AIM_S, f'{SCRAPE_AIM_S:g} s')}")
        print(f"the exporter's resident memory at its highest: {_status_field(exporter.pid, 'VmHWM'):,} KiB")
        for listener in held:
            listener.close()


def _verdict(reached: bool, aim: str) -> str:
    return f"aim {aim} {'reached' if reached else 'missed'}"


def _cost(turn: Callable[[], bytes], binder: int, exporter: int) -> Cost:
    before = _cpu_s(binder), _cpu_s(exporter)
    began = time.perf_counter()
    answer = turn()
    took = time.perf_counter() - began
    return Cost(took, _cpu_s(binder) - before[0], _cpu_s(exporter) - before[1], len(answer))


def _scrape(port: int) -> bytes:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", "/metrics")
        answer = connection.getresponse().read()
    if b"\nmultibinder_up 1.0\n" not in answer:
        sys.exit("the binder did not answer the exporter")
    return answer


def _status(socket_path: Path) -> bytes:
    """As the exporter asks, and nothing made of it."""
    with multibinder.Client(socket_path, timeout=60) as client:
        reply = client._ask("status", [])
    return bytes(reply.result)


def _cpu_s(pid: int) -> float:
    """User and system time, with that of children that were waited for: fields 14 to 17 of proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) * _TICK_S


def _status_field(pid: int, key: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit("it did not start")
        time.sleep(0.01)


@contextlib.contextmanager
def _process(*arguments: str | Path, log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with contextlib.ExitStack() as files:
        stderr = files.enter_context(log.open("wb")) if log else None
        process = subprocess.Popen([sys.executable, "-m", "multibinder", *arguments], stderr=stderr)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


if __name__ == "__main__":
    main()
