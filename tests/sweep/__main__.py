"""Run the sweep: ``python -m tests.sweep [--only LIFE] [--every N] [--share I/N] [--inject LIFE:CALL:NTH:ERROR]``.

Exits with 1 if a promise was broken. Each finding is printed with the option that replays it.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import itertools
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.sweep.errors import ERRORS, EXEMPT
from tests.sweep.life import LIVES, Report
from tests.sweep.strace import Call, Injection, calls_of

_hosts = itertools.count(1)
#: The interpreter's imports after an upgrade make thousands of calls of these kinds; one of so many is tried.
_IMPORTING = {"openat", "read", "newfstatat", "fstat", "getdents64", "mmap", "readlink", "ioctl", "pread64", "mprotect"}
_EVERY_IMPORT = 40


def live(name: str, injection: Injection | None) -> tuple[Report, list[Call]]:
    """Run one life in a directory of its own. Return its report and its calls."""
    number = next(_hosts)
    host = f"127.{32 + os.getpid() % 31}.{number // 250 % 250}.{number % 250 + 1}"
    with tempfile.TemporaryDirectory(prefix="mb-sweep-") as directory:
        life = LIVES[name](Path(directory), host, injection)
        report = life.run()
        return report, calls_of(life.trace_path) if injection is None else []


def injections(calls: Sequence[Call]) -> Iterator[Injection]:
    """Return the injections for these calls. After an execve(2), a part of the interpreter's own calls is tried."""
    has_executed = False
    imports = 0
    for call in calls:
        has_executed = has_executed or call.name == "execve"
        if has_executed and call.name in _IMPORTING:
            imports += 1
            if imports % _EVERY_IMPORT:
                continue
        for error in ERRORS.get(call.name, ()):
            yield Injection(call.name, call.nth, error)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep")
    parser.add_argument("--only", choices=sorted(LIVES))
    parser.add_argument("--every", type=int, default=1, help="try one of so many injections")
    parser.add_argument("--share", default="0/1", help="I/N: the part I of N parts")
    parser.add_argument("--inject", help="LIFE:CALL:NTH:ERROR: replay one injection, and print the log")
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.inject:
        name, _, injection = options.inject.partition(":")
        report, _ = live(name, Injection.parse(injection))
        print(report.log, report.reached, *report.findings, sep="\n")
        return bool(report.findings)
    share, shares = map(int, options.share.split("/"))
    found = 0
    for name in [options.only] if options.only else sorted(LIVES):
        began = time.monotonic()
        plain, calls = live(name, None)
        # A connection may end a moment later in another life.
        descriptors = max(plain.descriptors, *(live(name, None)[0].descriptors for _ in range(3)))
        if plain.findings:
            print(f"{name}: without an injection:", plain.log, *plain.findings, sep="\n")
            return 1
        unknown = {call.name for call in calls} - ERRORS.keys() - EXEMPT
        wanted = list(injections(calls))[share * options.every :: shares * options.every]
        print(f"{name}: {len(calls)} calls, {len(wanted)} injections, {descriptors} descriptors at the end", flush=True)
        if unknown:
            print(f"{name}: calls without a table of errors: {', '.join(sorted(unknown))}")
        outcomes: collections.Counter[str] = collections.Counter()
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            futures = {pool.submit(live, name, injection): injection for injection in wanted}
            for future in concurrent.futures.as_completed(futures):
                report, _ = future.result()
                if report.descriptors > descriptors:
                    report.findings.append(f"{report.descriptors} descriptors are open, {descriptors} without it")
                outcomes["not reached" if report.reached is None else "finding" if report.findings else "good"] += 1
                if report.findings:
                    found += report.reached is not None
                    print(f"--inject {name}:{futures[future]}: {'; '.join(report.findings)}", flush=True)
                    print(f"    {report.reached}", flush=True)
        minutes = (time.monotonic() - began) / 60
        print(f"{name}: {dict(outcomes)} in {minutes:.1f} min", flush=True)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
