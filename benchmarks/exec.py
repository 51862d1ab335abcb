"""Measure the time from the start of ``multibinder exec`` to the program's first line, beside what others take.

    python -m benchmarks.exec

The measure is an interpreter that imports ``socket`` and ``json``, which a client of the binder needs. Beside it, in
turns: the program alone; systemd-socket-activate, which binds by itself and starts the program at the first client; and
s6-fdholder-retrieve, a helper in C, with a daemon that holds the socket. These two are left out where they are not
installed. Times are medians of runs that take turns.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import multibinder
from benchmarks import rig

#: The aim: at most so many times the time of the interpreter.
AIM = 1.5
#: Prefixes of variables that the children must not inherit, because they address other processes.
_FOREIGN_VARIABLES = ("MULTIBINDER_", "LISTEN_", "NOTIFY_SOCKET", "JOURNAL_STREAM")
_MULTIBINDER = str(Path(sys.executable).parent / "multibinder")
_FULL, _QUICK, _INTERPRETER = "multibinder exec, full parser", "multibinder exec", "python -I -c 'import socket, json'"
_PROGRAM = ["/bin/echo", "first line"]
_HOST = "127.1.2.4"


def main() -> None:
    parser = argparse.ArgumentParser(description=rig.summary_of(__doc__))
    parser.add_argument("--runs", type=int, default=60, help="runs of each; the default is 60")
    runs = parser.parse_args().runs
    # As an installation has it, also where PYTHONDONTWRITEBYTECODE is set.
    compileall.compile_dir(Path(multibinder.__file__).parent, quiet=1)
    with rig.directory() as directory, contextlib.ExitStack() as running:
        control = directory / "control.sock"
        running.enter_context(rig.binder(control))
        bind = f"{_HOST}:8000=web"
        ours = ["--socket", str(control), "--owner", "bench"]
        ways: dict[str, Callable[[], float]] = {
            "the program alone": lambda: first_line(_PROGRAM),
            _INTERPRETER: lambda: first_line([sys.executable, "-I", "-c", "import socket, json; print()"]),
            _QUICK: lambda: first_line([_MULTIBINDER, "exec", *ours, "-b", bind, "--", *_PROGRAM]),
            _FULL: lambda: first_line([_MULTIBINDER, "exec", *ours, "-b", f"ipv4@{bind}", "--", *_PROGRAM]),
        }
        if shutil.which("systemd-socket-activate"):
            ways["systemd-socket-activate"] = activated
        if shutil.which("s6-fdholder-retrieve") and shutil.which("s6-fdholderd"):
            held = running.enter_context(fdholder(directory))
            ways["s6-fdholder-retrieve"] = lambda: first_line(["s6-fdholder-retrieve", held, "web", *_PROGRAM])
        else:
            print("s6-fdholder-retrieve is left out: s6 is not installed")
        for take in ways.values():
            take()  # files are in the page cache then
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(runs):
            for way, take in ways.items():
                times[way].append(take())
    for way, seconds in times.items():
        print(f"{way:<40}{statistics.median(seconds) * 1000:>8.1f} ms{min(seconds) * 1000:>10.1f} ms at least")
    ratio = statistics.median(times[_QUICK]) / statistics.median(times[_INTERPRETER])
    print(f"multibinder exec takes {ratio:.2f} times the interpreter ({rig.verdict(ratio <= AIM, f'{AIM:g}')})")


def first_line(command: list[str]) -> float:
    """Return the seconds from the start of a command to the end of its first line."""
    began = time.perf_counter()
    with subprocess.Popen(command, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        took = time.perf_counter() - began
        process.wait(rig.PATIENCE_S)
    if not line or process.returncode:
        sys.exit(f"a program ended with {process.returncode}, and printed {line!r}: {command}")
    return took


def activated() -> float:
    """Return the seconds from the start of systemd-socket-activate to the first line; it starts it for a client."""
    with socket.create_server((_HOST, 0)) as free:
        port = free.getsockname()[1]
    command = ["systemd-socket-activate", "-l", f"{_HOST}:{port}", *_PROGRAM]
    began = time.perf_counter()
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        while True:
            try:
                client = socket.create_connection((_HOST, port))
                break
            except ConnectionRefusedError:
                if process.poll() is not None or time.perf_counter() - began > rig.PATIENCE_S:
                    sys.exit(f"systemd-socket-activate does not listen: {process.returncode}")
                time.sleep(0.0002)
        with client:
            line = process.stdout.readline()
            took = time.perf_counter() - began
            process.wait(rig.PATIENCE_S)
    if not line:
        sys.exit(f"systemd-socket-activate ended with {process.returncode}")
    return took


@contextlib.contextmanager
def fdholder(directory: Path) -> Iterator[str]:
    """Run s6-fdholder-daemon with one listener, and give the path of its socket."""
    rules = directory / "rules"
    anyone = rules / "uid" / "default"
    (anyone / "env").mkdir(parents=True)
    for name in ("allow", "env/S6_FDHOLDER_STORE_REGEX", "env/S6_FDHOLDER_RETRIEVE_REGEX"):
        (anyone / name).write_text("\n" if name == "allow" else "^web$\n")
    path = str(directory / "fdholder.sock")
    # What s6-fdholder-daemon executes, from wherever it is installed.
    command: list[str | Path] = ["s6-ipcserver-socketbinder", "--", path, "s6-fdholderd", "-i", rules]
    with rig.process(command, cwd=directory, stderr=subprocess.DEVNULL) as daemon:
        rig.wait_until(lambda: os.path.exists(path), daemon)
        with socket.create_server((_HOST, 0)) as listener:
            stored = subprocess.run(["s6-fdholder-store", path, "web"], stdin=listener.fileno(), check=False)
        if stored.returncode:
            sys.exit("s6-fdholder-store failed")
        yield path


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN_VARIABLES)}


if __name__ == "__main__":
    main()
