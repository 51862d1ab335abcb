"""Start a binder with many listeners for a benchmark, and read figures of processes from /proc."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import multibinder

#: The time that a program has to start, and the time that it has to end.
PATIENCE_S = 60.0
#: Descriptors beside the listeners: those that the binder reserves for clients and itself, and some more.
_OTHER_DESCRIPTORS = 1_200
#: Listeners bound in one request.
_BATCH = 500


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """Make a temporary directory that every user may enter, and remove it afterwards.

    It is in memory, as /run is: on a disk, rename(2) may wait for a write.
    """
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(
        prefix="multibinder-bench-", dir=memory if os.path.ismount(memory) else None
    ) as name:
        os.chmod(name, 0o711)
        yield Path(name)


@contextlib.contextmanager
def binder(
    socket_path: Path, *options: str, python: str = sys.executable, quiet: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``multibinder serve`` until the end of the block, which begins when it answers.

    With ``quiet`` its log is dropped, for a benchmark that kills or floods it.
    """
    command = [python, "-m", "multibinder", "serve", "--quiet", "--socket", str(socket_path), *options]
    with process(command, cwd=socket_path.parent, stderr=subprocess.DEVNULL if quiet else None) as started:
        await_answer(socket_path, started)
        yield started


@contextlib.contextmanager
def process(command: Iterable[str | Path], cwd: Path, stderr: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the end of the block.

    ``cwd`` is not the project's directory, so that ``python -m multibinder`` runs the code that is installed.
    """
    started = subprocess.Popen([*command], cwd=cwd, stderr=stderr)
    try:
        yield started
    finally:
        started.terminate()
        started.wait(PATIENCE_S)


def await_answer(socket_path: Path, started: subprocess.Popen[bytes], *, not_from: int = 0) -> None:
    """Return when a binder whose PID is not ``not_from`` answers. Exits if the program that should start it ended."""

    def answers() -> bool:
        try:
            with multibinder.Client(socket_path, timeout=PATIENCE_S) as client:
                return client.hello().pid != not_from
        except multibinder.BinderUnavailable:
            return False

    wait_until(answers, started)


def wait_until(condition: Callable[[], object], started: subprocess.Popen[bytes]) -> None:
    """Return when the condition holds. Exits if it does not in time, or if the program that it waits for ended."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if started.poll() is not None:
            sys.exit(f"a program ended with {started.returncode}: {started.args!r}")
        if time.monotonic() > deadline:
            sys.exit(f"a program did not get ready within {PATIENCE_S:g} s: {started.args!r}")
        time.sleep(0.002)


def bind(client: multibinder.Client, count: int, owner: str = "") -> Iterator[multibinder.SharedListener]:
    """Bind ``count`` new listeners in batches, and yield each. The caller owns them; the binder has its own copies."""
    for start in range(0, count, _BATCH):
        # No other program is likely to use this loopback address.
        yield from client.bind([("127.1.2.3", 0)] * min(count - start, _BATCH), owner=owner)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of RLIMIT_NOFILE to the hard limit, which is returned."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def affordable(counts: Iterable[int]) -> list[int]:
    """Return the numbers of listeners that the hard limit of RLIMIT_NOFILE allows, and raise the soft one to it."""
    limit = raise_descriptor_limit()
    allowed = []
    for count in counts:
        if count + _OTHER_DESCRIPTORS <= limit:
            allowed.append(count)
        else:
            print(f"{count:,} listeners are left out: the hard limit of RLIMIT_NOFILE is {limit:,}")
    return allowed


def status_field(pid: int, key: str) -> int:
    """Return a number of proc_pid_status(5); memory is in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process and of the children it has waited for: proc_pid_stat(5), fields 14 to 17."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def verdict(reached: bool, aim: str) -> str:
    return f"aim {aim}: {'reached' if reached else 'missed'}"


def summary_of(documentation: str | None) -> str:
    """Return the first paragraph of a module's docstring, which describes the benchmark in its ``--help``."""
    return (documentation or "").partition("\n\n")[0]
