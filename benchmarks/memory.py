"""The binder's resident memory with 1, 1,000 and 10,000 listeners, and how often it wakes up while nobody asks.

    python benchmarks/memory.py               # in this environment
    python benchmarks/memory.py --clean-venv  # in one with nothing but multibinder and what it needs (installs it)

What else is installed matters: msgspec imports typing_extensions where it finds it (mypy brings it), for 1.3 MB more.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import multibinder

#: The aims: resident memory with 1,000 listeners, and wake-ups in ten seconds.
MEMORY_AIM_KIB = 18_000_000 // 1024
WAKEUPS_AIM = 1

_COUNTS = (1, 1_000, 10_000)
_COUNT_OF_AIM = 1_000
_IDLE_S = 10
#: What the binder keeps free for its clients and itself, and some more.
_OTHER_DESCRIPTORS = 1_200
_BATCH = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clean-venv", action="store_true", help="measure in a new virtual environment")
    arguments = parser.parse_args()

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    counts = [count for count in _COUNTS if hard == resource.RLIM_INFINITY or count + _OTHER_DESCRIPTORS <= hard]
    with tempfile.TemporaryDirectory(prefix="multibinder-bench-") as name:
        directory = Path(name)
        python = _clean_python(directory / "venv") if arguments.clean_venv else sys.executable
        socket_path = directory / "control.sock"
        with _binder(python, socket_path) as pid, multibinder.Client(socket_path, timeout=60) as client:
            print(f"{'listeners':>10}{'resident':>14}{'of it private':>16}{'a listener':>14}")
            before = 0
            for count in counts:
                _bind(client, count)
                resident, private = (_status(pid, key) for key in ("VmRSS", "RssAnon"))
                each = f"{(resident - before) * 1024 / count:,.0f} B" if before else ""
                aim = _verdict(resident <= MEMORY_AIM_KIB, f"{MEMORY_AIM_KIB:,} KiB") if count == _COUNT_OF_AIM else ""
                print(f"{count:>10,}{resident:>10,} KiB{private:>12,} KiB{each:>14}{aim}", flush=True)
                before = before or resident
                if count == _COUNT_OF_AIM:
                    wakeups = _wakeups(pid)
            aim = _verdict(wakeups <= WAKEUPS_AIM, str(WAKEUPS_AIM))
            print(f"wake-ups in {_IDLE_S} s with {_COUNT_OF_AIM:,} listeners and a silent client: {wakeups}{aim}")


def _verdict(reached: bool, aim: str) -> str:
    return f"   aim {aim}: {'reached' if reached else 'missed'}"


def _bind(client: multibinder.Client, count: int) -> None:
    """Until there are so many. They stay: the binder has its own copies."""
    missing = count - len(client.list())
    while missing > 0:
        # No other program is likely to be in the way on this loopback address.
        for listener in client.bind([("127.1.2.3", 0)] * min(missing, _BATCH)):
            listener.close()
        missing -= _BATCH


def _wakeups(pid: int) -> int:
    before = _status(pid, "voluntary_ctxt_switches")
    time.sleep(_IDLE_S)
    return _status(pid, "voluntary_ctxt_switches") - before


def _status(pid: int, key: str) -> int:
    """A number of /proc/PID/status (proc(5)); memory is in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


@contextlib.contextmanager
def _binder(python: str, socket_path: Path) -> Iterator[int]:
    process = subprocess.Popen(
        [python, "-m", "multibinder", "serve", "--quiet", "--socket", str(socket_path)],
        cwd=socket_path.parent,  # not the project's directory: what is installed is measured
    )
    try:
        deadline = time.monotonic() + 10
        while not socket_path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit("the binder did not start")
            time.sleep(0.01)
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)


def _clean_python(directory: Path) -> str:
    project = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    python = os.fspath(directory / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", project], check=True)
    return python


if __name__ == "__main__":
    main()
