"""Measure ``multibinder-haproxy run`` with 1, 100 and 1,000 binds in a template, from its start to the exec.

    python -m benchmarks.rendering

/bin/true takes HAProxy's place, so that only the wrapper and the binder are measured, as a whole process. *first*
binds the listeners and has the configuration checked; *again* is a restart after a crash. The sizes take turns,
because the machine's speed drifts. The ratio to one bind is the figure to quote.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks import rig

#: The aim: the largest template takes at most this many times as long as the smallest.
AIM = 2.0

_SIZES = (1, 100, 1000)
_WRAPPER = Path(sys.executable).parent / "multibinder-haproxy"
_TEMPLATE = "{{% for port in range(20000, {end}) %}}bind {{{{ bind_tcp('{host}', port) }}}}\n{{% endfor %}}"


def main() -> None:
    parser = argparse.ArgumentParser(description=rig.summary_of(__doc__))
    parser.add_argument("--rounds", type=int, default=10, help="restarts of each size (default: %(default)s)")
    rounds = parser.parse_args().rounds
    with rig.directory() as directory, rig.binder(directory / "mb.sock"):
        environment = {
            **os.environ,
            "MULTIBINDER_SOCK": str(directory / "mb.sock"),
            "MULTIBINDER_HAPROXY_RUNTIME_DIR": str(directory / "run"),
        }
        for number, size in enumerate(_SIZES):
            host = f"127.{100 + os.getpid() % 100}.9.{number + 1}"
            (directory / f"b{size}.cfg.j2").write_text(_TEMPLATE.format(end=20000 + size, host=host))
        first = {size: _run_s(directory, size, environment) for size in _SIZES}
        again: dict[int, list[float]] = {size: [] for size in _SIZES}
        for _ in range(rounds):
            for size in _SIZES:
                again[size].append(_run_s(directory, size, environment))
    print(f"{'binds':>6}  {'first, ms':>10}  {'again, ms (median of ' + str(rounds) + ')':>28}  {'ratio to 1':>10}")
    base = statistics.median(again[_SIZES[0]])
    for size in _SIZES:
        ratio = statistics.median(again[size]) / base
        print(f"{size:>6}  {first[size] * 1000:>10.1f}  {ratio * base * 1000:>28.1f}  {ratio:>10.2f}")
    print(rig.verdict(ratio <= AIM, f"{_SIZES[-1]:,} binds in {AIM:g} times the time of {_SIZES[0]}"))


def _run_s(directory: Path, size: int, environment: Mapping[str, str]) -> float:
    """Run the wrapper once, and return the seconds that it took."""
    template = f"{directory}/b{size}.cfg.j2"
    command = [str(_WRAPPER), "run", "--name", f"b{size}", "--", "/bin/true", "-Ws", "-f", template]
    began = time.perf_counter()
    subprocess.run(command, env=environment, check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
