"""Run the chaos: ``python -m tests.chaos --seed 1 --minutes 20``. Exits with 1 if a promise was broken."""

from __future__ import annotations

import argparse
import sys
import time

from tests.chaos.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the same seed gives the same actions")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (%(default)s)")
    parser.add_argument("--rate", type=float, default=300.0, help="connections a second (%(default)s)")
    chosen = parser.parse_args()
    broken = run(chosen.seed, chosen.minutes * 60, chosen.rate)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
