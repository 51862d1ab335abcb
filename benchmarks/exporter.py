"""Measure a scrape with 1, 1,000 and 10,000 listeners: its duration, and the CPU time of exporter and binder.

    python -m benchmarks.exporter

Each listener is held by a process other than the binder, as in production (there, many processes hold a few each). A
scrape and a bare ``status`` over the control socket are measured in turns, so that a busy machine slows both. The
binder's CPU seconds are those of its own process and of the child that scans /proc for it.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import multibinder
from benchmarks import rig

#: The aims with 10,000 listeners: the duration of a scrape (Prometheus gives up after 10 s by default), and the share
#: of a core that the binder spends on a scrape every 15 s.
SCRAPE_AIM_S = 5.0
BINDER_AIM = 0.05
_EVERY_S = 15.0

_COUNTS = (1, 1_000, 10_000)


class Cost(NamedTuple):
    """The seconds of one turn, and the bytes of its answer."""

    took: float
    binder: float
    exporter: float
    size: int


def main() -> None:
    parser = argparse.ArgumentParser(description=rig.summary_of(__doc__))
    parser.add_argument("--rounds", type=int, default=9, help="turns of each kind (default: %(default)s)")
    arguments = parser.parse_args()

    counts = rig.affordable(_COUNTS)
    held: list[multibinder.SharedListener] = []
    with contextlib.ExitStack() as running:
        directory = running.enter_context(rig.directory())
        socket_path = directory / "control.sock"
        binder = running.enter_context(rig.binder(socket_path))
        log = running.enter_context((directory / "exporter.log").open("w+"))
        exporter = running.enter_context(
            rig.process(
                [sys.executable, "-m", "multibinder", "exporter", "--listen", "127.0.0.1:0", "--socket", socket_path,
                 "--runtime-dir", directory / "none"],
                cwd=directory, stderr=log.fileno(),
            )
        )  # fmt: skip
        port = 0

        def is_serving() -> bool:
            nonlocal port
            log.seek(0)
            found = re.search(r"serving http://127\.0\.0\.1:(\d+)/", log.read())
            port = int(found[1]) if found else 0
            return bool(found)

        rig.wait_until(is_serving, exporter)
        client = running.enter_context(multibinder.Client(socket_path, timeout=60))
        print(f"{arguments.rounds} rounds; binder and exporter: their CPU time")
        print(f"{'listeners':>10}{'':>10}{'took':>12}{'binder':>12}{'exporter':>12}{'answer':>14}{'series':>10}")
        for count in counts:
            held += rig.bind(client, count - len(held), owner="benchmark")
            series = _scrape(port).count(b"\n")
            turns = {"status": lambda: _status(socket_path), "scrape": lambda: _scrape(port)}
            costs: dict[str, list[Cost]] = {name: [] for name in turns}
            for _ in range(arguments.rounds):
                for name, turn in turns.items():
                    costs[name].append(_cost(turn, binder.pid, exporter.pid))
            for name, each in costs.items():
                took, size = (statistics.median(values) for values in ([c.took for c in each], [c.size for c in each]))
                # CPU time is counted in hundredths of a second, so the mean over all rounds is more precise.
                spent, own = statistics.mean(c.binder for c in each), statistics.mean(c.exporter for c in each)
                of_series = f"{series:>10,}" if name == "scrape" else ""
                print(f"{count:>10,}{name:>10}{took * 1e3:>9,.1f} ms{spent * 1e3:>9,.1f} ms{own * 1e3:>9,.1f} ms"
                      f"{size:>12,.0f} B{of_series}", flush=True)  # fmt: skip
        share = spent / _EVERY_S
        print(f"with {counts[-1]:,} listeners and a scrape every {_EVERY_S:g} s, the binder spends {share:.1%} of a "
              f"core on them; {rig.verdict(share <= BINDER_AIM, f'{BINDER_AIM:.0%}')}")  # fmt: skip
        print(f"a scrape takes {took:.2f} s; {rig.verdict(took <= SCRAPE_AIM_S, f'{SCRAPE_AIM_S:g} s')}")
        print(f"the exporter's resident memory at its highest: {rig.status_field(exporter.pid, 'VmHWM'):,} KiB")
        for listener in held:
            listener.close()


def _cost(turn: Callable[[], bytes], binder: int, exporter: int) -> Cost:
    before = rig.cpu_s(binder), rig.cpu_s(exporter)
    began = time.perf_counter()
    answer = turn()
    took = time.perf_counter() - began
    return Cost(took, rig.cpu_s(binder) - before[0], rig.cpu_s(exporter) - before[1], len(answer))


def _scrape(port: int) -> bytes:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", "/metrics")
        answer = connection.getresponse().read()
    if b"\nmultibinder_up 1.0\n" not in answer:
        sys.exit("the binder did not answer the exporter")
    return answer


def _status(socket_path: Path) -> bytes:
    """Ask for the status as the exporter does, without decoding the listeners."""
    with multibinder.Client(socket_path, timeout=60) as client:
        reply = client._ask("status", [])
    return bytes(reply.result)


if __name__ == "__main__":
    main()
