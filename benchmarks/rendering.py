#!/usr/bin/env python3
"""What 1, 100 and 1,000 binds in one template cost: ``multibinder-haproxy run``, from its start to the exec.

/bin/true stands in for HAProxy, so that nothing but the wrapper and the binder is measured, as a whole process. *first*
makes the listeners and has the configuration checked; *again* is what a restart after a crash does. The sizes take
turns, because the machine's speed drifts; the figure to quote is the ratio to one bind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SIZES = (1, 100, 1000)
WRAPPER = Path(sys.executable).parent / "multibinder-haproxy"
TEMPLATE = "{{% for port in range(20000, {end}) %}}bind {{{{ bind_tcp('{host}', port) }}}}\n{{% endfor %}}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="mb-") as name, binder(Path(name)) as environment:
        directory = Path(name)
        for number, size in enumerate(SIZES):
            host = f"127.{100 + os.getpid() % 100}.9.{number + 1}"
            (directory / f"b{size}.cfg.j2").write_text(TEMPLATE.format(end=20000 + size, host=host))
        first = {size: [run(directory, size, environment)] for size in SIZES}
        again: dict[int, list[float]] = {size: [] for size in SIZES}
        for _ in range(rounds):
            for size in SIZES:
                again[size].append(run(directory, size, environment))
    print(f"{'binds':>6}  {'first, ms':>10}  {'again, ms (median of ' + str(rounds) + ')':>28}  {'ratio to 1':>10}")
    base = statistics.median(again[1])
    for size in SIZES:
        median = statistics.median(again[size])
        print(f"{size:>6}  {first[size][0] * 1000:>10.1f}  {median * 1000:>28.1f}  {median / base:>10.2f}")
    print("aim: 1,000 binds in at most twice the time of 1")


@contextlib.contextmanager
def binder(directory: Path) -> Iterator[dict[str, str]]:
    path = directory / "mb.sock"
    command = [sys.executable, "-m", "multibinder", "serve", "--quiet", "--socket", str(path)]
    with subprocess.Popen(command) as process:
        try:
            while not path.exists():
                if process.poll() is not None:
                    sys.exit("the binder did not start")
                time.sleep(0.01)
            runtime = str(directory / "run")
            yield {**os.environ, "MULTIBINDER_SOCK": str(path), "MULTIBINDER_HAPROXY_RUNTIME_DIR": runtime}
        finally:
            process.terminate()


def run(directory: Path, size: int, environment: dict[str, str]) -> float:
    """Seconds."""
    command = [str(WRAPPER), "run", "--name", f"b{size}", "--", "/bin/true", "-Ws", "-f", f"{directory}/b{size}.cfg.j2"]
    begun = time.perf_counter()
    subprocess.run(command, env=environment, check=True)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
