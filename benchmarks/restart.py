"""How long a binder that was killed with SIGKILL is away, and what it and its guard weigh, with 1, 1,000 and 10,000
listeners.

    python benchmarks/restart.py

Away is from the signal to the first answer to ``hello``, which comes when every listener is there again; the median
of five kills. The clients' connections wait meanwhile, in the accept queues of whoever holds the listeners.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import multibinder

_COUNTS = (1, 1_000, 10_000)
_KILLS = 5
#: What the binder keeps free for its clients and itself, and some more.
_OTHER_DESCRIPTORS = 1_200
_BATCH = 500
_PATIENCE_S = 60.0


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(f"{'listeners':>10}{'away (median':>14}{'longest)':>12}{'binder before':>16}{'after':>14}{'guard':>14}")
    for count in _COUNTS:
        if hard != resource.RLIM_INFINITY and count + _OTHER_DESCRIPTORS > hard:
            print(f"{count:>10,}  RLIMIT_NOFILE is {hard:,}: not enough")
            continue
        with tempfile.TemporaryDirectory(prefix="multibinder-bench-") as name, _guard(Path(name) / "mb.sock") as guard:
            socket_path = Path(name) / "mb.sock"
            _bind(socket_path, count)
            before = _resident_kib(_child_of(guard))
            away = [_kill_and_wait(guard, socket_path, count) for _ in range(_KILLS)]
            after, guards = _resident_kib(_child_of(guard)), _resident_kib(guard)
        times = f"{statistics.median(away) * 1e3:>11,.0f} ms{max(away) * 1e3:>9,.0f} ms"
        print(f"{count:>10,}{times}{before:>12,} KiB{after:>10,} KiB{guards:>10,} KiB", flush=True)


def _kill_and_wait(guard: int, socket_path: Path, count: int) -> float:
    """Seconds; fails unless every listener is there again."""
    killed = _child_of(guard)
    began = time.monotonic()
    os.kill(killed, signal.SIGKILL)
    _await_answer(socket_path, not_from=killed)
    away = time.monotonic() - began
    with multibinder.Client(socket_path, timeout=_PATIENCE_S) as client:
        present = len(client.list())
    if present != count:
        sys.exit(f"{present} of {count} listeners came back")
    return away


def _await_answer(socket_path: Path, not_from: int = 0) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            with multibinder.Client(socket_path, timeout=_PATIENCE_S) as client:
                if client.hello().pid != not_from:
                    return
        except multibinder.BinderUnavailable:
            if time.monotonic() > deadline:
                sys.exit("the binder does not answer")
        time.sleep(0.002)


def _bind(socket_path: Path, count: int) -> None:
    with multibinder.Client(socket_path, timeout=_PATIENCE_S) as client:
        for start in range(0, count, _BATCH):
            # No other program is likely to be in the way on this loopback address.
            for listener in client.bind([("127.1.2.4", 0)] * min(count - start, _BATCH)):
                listener.close()


def _child_of(pid: int) -> int:
    """Of the guard there is one (proc_pid_task_children(5))."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


@contextlib.contextmanager
def _guard(socket_path: Path) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "multibinder", "serve", "--guard", "--quiet", "--socket", str(socket_path)],
        cwd=socket_path.parent,  # not the project's directory: what is installed is measured
        stderr=subprocess.DEVNULL,  # that binders die is no news here
    )
    try:
        _await_answer(socket_path)
        yield process.pid
    finally:
        process.terminate()
        process.wait(_PATIENCE_S)


if __name__ == "__main__":
    main()
