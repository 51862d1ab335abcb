"""How long `multibinder status` takes with 10,000 listeners, and what the binder's looks cost.

python -m benchmarks.status
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import multibinder

#: The aim for the whole command, from its start to its end.
AIM_S = 1.0
_COUNT = 10_000
_BATCH = 500
_LOOKS = 10


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < _COUNT + 1200:
        sys.exit(f"the hard limit of RLIMIT_NOFILE is {hard}; this needs {_COUNT + 1200}")
    with tempfile.TemporaryDirectory(prefix="multibinder-bench-") as name:
        path = Path(name) / "control.sock"
        command = [sys.executable, "-m", "multibinder"]
        serve = [*command, "serve", "--quiet", "--socket", str(path)]
        binder = subprocess.Popen(serve)
        try:
            while True:
                try:
                    client = multibinder.Client(path, timeout=60)
                    break
                except multibinder.BinderUnavailable:
                    time.sleep(0.01)
            with client:
                for _ in range(_COUNT // _BATCH):
                    for listener in client.bind([("127.1.2.3", 0)] * _BATCH, owner="benchmark"):
                        listener.close()
                before, began = _cpu_s(binder.pid), time.perf_counter()
                for _ in range(_LOOKS):
                    client.status()
                each = (time.perf_counter() - began) / _LOOKS
                cpu = (_cpu_s(binder.pid) - before) / _LOOKS
            print(f"{_COUNT:,} listeners: the binder answers in {each * 1000:.0f} ms", end="")
            print(f" ({cpu * 1000:.0f} ms of CPU, its child's look included)")
            for option in ("", "--json", "--check"):
                arguments = [*command, "status", *filter(None, [option]), "--socket", str(path)]
                took = min(_took_s(arguments) for _ in range(3))
                verdict = "reached" if took < AIM_S else "missed"
                print(f"multibinder status {option:8}{took:6.2f} s   aim {AIM_S:g} s: {verdict}", flush=True)
        finally:
            binder.terminate()
            binder.wait()


def _took_s(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    return time.perf_counter() - began


def _cpu_s(pid: int) -> float:
    """Of it and the children that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
