"""Measure how long a binder killed with SIGKILL is unavailable, and the memory of binder and guard.

    python -m benchmarks.restart

The time is from the signal to the first answer to ``hello``, which comes when every listener is restored: the median
and the longest of five kills, with 1, 1,000 and 10,000 listeners. Meanwhile connections wait in the accept queues.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import multibinder
from benchmarks import rig
from multibinder.kernel.process import children_of

_COUNTS = (1, 1_000, 10_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=rig.summary_of(__doc__))
    parser.add_argument("--kills", type=int, default=5, help="kills for each number of listeners (%(default)s)")
    arguments = parser.parse_args()
    counts = rig.affordable(_COUNTS)
    print(f"{'listeners':>10}{'away (median':>14}{'longest)':>12}{'binder before':>16}{'after':>14}{'guard':>14}")
    for count in counts:
        with rig.directory() as directory, rig.binder(directory / "mb.sock", "--guard", quiet=True) as guard:
            socket_path = directory / "mb.sock"
            with multibinder.Client(socket_path, timeout=rig.PATIENCE_S) as client:
                for listener in rig.bind(client, count):
                    listener.close()
            [binder] = children_of(guard.pid)
            before = rig.status_field(binder, "VmRSS")
            away = [_kill_and_wait(guard, socket_path, count) for _ in range(arguments.kills)]
            [binder] = children_of(guard.pid)
            after, guards = (rig.status_field(pid, "VmRSS") for pid in (binder, guard.pid))
        times = f"{statistics.median(away) * 1e3:>11,.0f} ms{max(away) * 1e3:>9,.0f} ms"
        print(f"{count:>10,}{times}{before:>12,} KiB{after:>10,} KiB{guards:>10,} KiB", flush=True)


def _kill_and_wait(guard: subprocess.Popen[bytes], socket_path: Path, count: int) -> float:
    """Kill the binder, and return the seconds until it answers again. Exits unless every listener is restored."""
    [killed] = children_of(guard.pid)
    began = time.monotonic()
    os.kill(killed, signal.SIGKILL)
    rig.await_answer(socket_path, guard, not_from=killed)
    away = time.monotonic() - began
    with multibinder.Client(socket_path, timeout=rig.PATIENCE_S) as client:
        present = len(client.list())
    if present != count:
        sys.exit(f"{present} of {count} listeners came back")
    return away


if __name__ == "__main__":
    main()
