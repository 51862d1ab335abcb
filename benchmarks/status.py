"""Measure ``multibinder status`` with 10,000 listeners, and the CPU time that the binder spends on an answer.

    python -m benchmarks.status

The command is measured as a whole process, with each form of its output.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import multibinder
from benchmarks import rig

#: The aim for the whole command, from its start to its end.
AIM_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=rig.summary_of(__doc__))
    parser.add_argument("--listeners", type=int, default=10_000, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="answers to measure (default: %(default)s)")
    arguments = parser.parse_args()
    count, rounds = arguments.listeners, arguments.rounds
    if not rig.affordable([count]):
        sys.exit("the benchmark needs a higher limit")
    with rig.directory() as directory, rig.binder(directory / "control.sock") as binder:
        socket_path = directory / "control.sock"
        with multibinder.Client(socket_path, timeout=60) as client:
            for listener in rig.bind(client, count, owner="benchmark"):
                listener.close()
            before, began = rig.cpu_s(binder.pid), time.perf_counter()
            for _ in range(rounds):
                client.status()
            each = (time.perf_counter() - began) / rounds
            cpu = (rig.cpu_s(binder.pid) - before) / rounds
        print(f"{count:,} listeners: the binder answers in {each * 1000:.0f} ms", end="")
        print(f" ({cpu * 1000:.0f} ms of CPU, with its child's scan of /proc)")
        for option in ("", "--json", "--check"):
            command = [sys.executable, "-m", "multibinder", "status", *filter(None, [option])]
            took = min(_took_s([*command, "--socket", str(socket_path)]) for _ in range(3))
            print(
                f"multibinder status {option:8}{took:6.2f} s   {rig.verdict(took < AIM_S, f'{AIM_S:g} s')}", flush=True
            )


def _took_s(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
