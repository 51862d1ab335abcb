"""Restart a server again and again under load, and count what its clients lose.

``python -m tests.frameworks.campaign`` does so for the rows of the table, and prints what it saw. Its exit status is 1
if a server lost a client that is started and stopped as docs/frameworks.md says.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import os
import platform
import signal
import sys
import tempfile
import threading
from pathlib import Path

import multibinder
from multibinder.pytest_plugin import RunningBinder, running_binder
from tests.frameworks.rows import BARE, ROWS, SERVERS, Row
from tests.frameworks.tls_load import TlsLoad, certificate
from tests.support.commands import clean_environment
from tests.support.load import Load
from tests.support.restarts import PATIENCE_S, SERVES_S, Outcome, Start, Way, copies, has_said

#: ``make frameworks`` installs the packages here.
PACKAGES = Path(__file__).parents[2] / ".venv" / "frameworks"
#: New connections a second.
RATE = 200
#: A server that is held up for so many seconds has a queue of 40 clients.
HELD_UP_S = 0.2
WAYS = (Way.OVERLAP, Way.STOP_THEN_START, Way.BUSY_STOP)


@functools.cache
def version(package: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    path = [str(PACKAGES), *sys.path]
    found = next(iter(importlib.metadata.distributions(name=package, path=path)), None)
    return None if found is None else found.version


def missing(row: Row) -> list[str]:
    """Return the packages of a row that are not installed."""
    return [package for package in row.packages if version(package) is None]


def _start(row: Row, port: int, directory: Path, socket_path: Path) -> Start:
    path = [str(PACKAGES), str(SERVERS), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {
        **{name: value.replace("PORT", str(port)) for name, value in row.environment.items()},
        "CERTIFICATE": str(directory / "certificate.pem"),
        multibinder.SOCKET_VARIABLE: str(socket_path),
        "PYTHONPATH": os.pathsep.join(path),
    }
    return Start(row.name, row.command(port), clean_environment(variables), has_said(row.ready, row.times))


def restart(row: Row, rounds: int, way: Way, *, directory: Path, binder: RunningBinder) -> Outcome:
    """Restart a server under load. ``directory`` is for logs; the binder has the kernel choose the port."""
    with multibinder.bind("127.0.0.1", 0, socket_path=binder.socket_path) as listener:
        target = ("127.0.0.1", listener.getsockname()[1])
    if row.is_tls:
        certificate(directory / "certificate.pem")
    with copies(_start(row, target[1], directory, binder.socket_path), directory) as servers:
        servers.start()
        with _load(row, target) as load:
            threading.Event().wait(SERVES_S)
            for _ in range(rounds):
                servers.restart(way, held_up_s=HELD_UP_S if way is Way.BUSY_STOP else 0.0)
            seen = load.stop()
        servers.stop()
    return Outcome.of(seen, servers.ends, servers.logs)


def _load(row: Row, target: tuple[str, int]) -> Load | TlsLoad:
    if row.is_tls:
        return TlsLoad(target, rate=RATE, timeout_s=PATIENCE_S)
    return Load([target], rate=RATE, timeout_s=PATIENCE_S, bodies=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Restart the servers of docs/frameworks.md under load.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only rows whose name has this part")
    parser.add_argument("--rounds", type=int, default=10, help="restarts in each way (%(default)s)")
    parser.add_argument("--logs", type=Path, metavar="DIRECTORY", help="write the output of the servers there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))  # which ends the servers too
    lost = 0
    for row in ROWS:
        if options.names and not any(part.lower() in row.name.lower() for part in options.names):
            continue
        if absent := missing(row):
            print(f"{row.name}: skipped, {', '.join(absent)} not installed")
            continue
        versions = [f"{package} {version(package)}" for package in row.packages]
        print(f"{row.name} ({', '.join([f'Python {platform.python_version()}', *versions])})", flush=True)
        for way in WAYS:
            with tempfile.TemporaryDirectory(prefix="mb-") as directory, running_binder() as binder:
                outcome = restart(row, options.rounds, way, directory=Path(directory), binder=binder)
            lost += 0 if row.name.endswith(BARE) else outcome.lost
            lines = [f"{way.name.lower().replace('_', ' '):15}  {outcome}", *outcome.complaints()]
            print("".join(f"    {line}\n" for line in lines), end="", flush=True)
            if options.logs:
                options.logs.mkdir(parents=True, exist_ok=True)
                (options.logs / f"{row.name} {way.name}").write_text(outcome.log)
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
