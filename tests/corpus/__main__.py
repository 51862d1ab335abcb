"""``python -m tests.corpus [--jobs N] [NAME...]``: run the shapes whose names begin so, or all; print what is wrong."""

from __future__ import annotations

import argparse
import concurrent.futures
import sys

from tests.corpus.run import run, run_apart
from tests.corpus.shapes import SHAPES


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.corpus")
    parser.add_argument("--jobs", type=int, default=3)
    parser.add_argument("--here", action="store_true", help="in the present namespaces, which must be new ones")
    parser.add_argument("--seeds", type=int, default=40, help="the number of configurations by the grammar")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    if options.here:
        findings = run(options.names[0])
        _say("\n".join(findings))
        return bool(findings)
    every = [*SHAPES, *(f"grammar-{seed}" for seed in range(options.seeds))]
    wanted = [name for name in every if not options.names or name.startswith(tuple(options.names))]
    bad = 0
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for name, done in zip(wanted, pool.map(run_apart, wanted), strict=True):
            _say(f"{'ok' if done.returncode == 0 else 'WRONG'} {name}")
            if done.returncode != 0:
                bad += 1
                _say("    " + "\n    ".join((done.stdout.strip() or done.stderr.strip()[-1500:]).splitlines()))
    _say(f"{len(wanted) - bad} of {len(wanted)} configurations listen, and serve, as with plain HAProxy")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
