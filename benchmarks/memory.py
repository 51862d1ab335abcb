"""Measure the binder's resident memory with 1, 1,000 and 10,000 listeners, and its wake-ups while idle.

    python -m benchmarks.memory               # in this environment
    python -m benchmarks.memory --clean-venv  # in a new one that has only multibinder and its dependencies

Other packages matter: msgspec imports typing_extensions if it is installed (mypy brings it), which adds 1.3 MB.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import multibinder
from benchmarks import rig

#: The aims: resident memory with 1,000 listeners, and wake-ups in ten seconds.
MEMORY_AIM_KIB = 18_000_000 // 1024
WAKEUPS_AIM = 1

_COUNTS = (1, 1_000, 10_000)
_COUNT_OF_AIM = 1_000
_IDLE_S = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=rig.summary_of(__doc__))
    parser.add_argument("--clean-venv", action="store_true", help="measure in a new virtual environment")
    arguments = parser.parse_args()

    counts = rig.affordable(_COUNTS)
    with rig.directory() as directory:
        python = _clean_python(directory / "venv") if arguments.clean_venv else sys.executable
        socket_path = directory / "control.sock"
        with rig.binder(socket_path, python=python) as binder, multibinder.Client(socket_path, timeout=60) as client:
            print(f"{'listeners':>10}{'resident':>14}{'of it private':>16}{'a listener':>14}")
            baseline = bound = 0
            for count in counts:
                for listener in rig.bind(client, count - bound):
                    listener.close()
                bound = count
                resident, private = (rig.status_field(binder.pid, key) for key in ("VmRSS", "RssAnon"))
                each = f"{(resident - baseline) * 1024 / count:,.0f} B" if baseline else ""
                aim = rig.verdict(resident <= MEMORY_AIM_KIB, f"{MEMORY_AIM_KIB:,} KiB")
                print(f"{count:>10,}{resident:>10,} KiB{private:>12,} KiB{each:>14}", end="")
                print(f"   {aim}" if count == _COUNT_OF_AIM else "", flush=True)
                baseline = baseline or resident
                if count == _COUNT_OF_AIM:
                    wakeups = _wakeups(binder.pid)
                    aim = rig.verdict(wakeups <= WAKEUPS_AIM, str(WAKEUPS_AIM))
                    print(f"wake-ups in {_IDLE_S} s with {count:,} listeners and an idle client: {wakeups}   {aim}")


def _wakeups(pid: int) -> int:
    before = rig.status_field(pid, "voluntary_ctxt_switches")
    time.sleep(_IDLE_S)
    return rig.status_field(pid, "voluntary_ctxt_switches") - before


def _clean_python(directory: Path) -> str:
    project = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    python = os.fspath(directory / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", project], check=True)
    return python


if __name__ == "__main__":
    main()
