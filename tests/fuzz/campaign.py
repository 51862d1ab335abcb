"""Run many inputs with options, report progress, and leave an input that fails in a file."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

_REPORT_EVERY_S = 10.0


def options(target: str, *, engine: bool) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m tests.fuzz.{target}")
    parser.add_argument("--runs", type=int, default=10_000, help="inputs, those of the corpus among them")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the same seed gives the same inputs")
    parser.add_argument(
        "--failures", type=Path, default=Path("fuzz-failures"), help="where an input that fails is left"
    )
    if engine:
        parser.add_argument("--engine", choices=["best", "atheris", "own"], default="best")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="inputs to run again, instead")
    chosen = parser.parse_args()
    chosen.failures.mkdir(exist_ok=True)
    return chosen


def run(
    chosen: argparse.Namespace,
    target: str,
    inputs: Iterable[bytes],
    check: Callable[[bytes], None],
    settle: Callable[[], None] = lambda: None,
) -> None:
    """Call ``check`` for every input, and ``settle`` at the end. An input that fails is left in a file."""
    say(f"{target}: seed {chosen.seed}")
    started = reported = time.monotonic()
    count, content = 0, b""
    try:
        for count, content in enumerate(inputs, 1):
            check(content)
            if (now := time.monotonic()) - reported > _REPORT_EVERY_S:
                reported = now
                say(f"{target}: {count} inputs, {count / (now - started):.0f} a second")
        settle()
    except Exception as error:
        _leave(chosen, target, content, error)
        raise SystemExit(1) from error
    say(f"{target}: {count} inputs in {time.monotonic() - started:.0f} s, and every promise held")


def again(files: Sequence[Path], check: Callable[[bytes], None], settle: Callable[[], None] = lambda: None) -> None:
    for file in files:
        check(file.read_bytes())
        settle()
        say(f"{file}: every promise held")


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _leave(chosen: argparse.Namespace, target: str, content: bytes, error: Exception) -> None:
    traceback.print_exception(error)
    content = getattr(error, "inputs", content)
    file: Path = chosen.failures / f"{target}-{hashlib.sha1(content).hexdigest()[:16]}"
    file.write_bytes(content)
    say(f"\n{target}: the input is in {file}; run it again with\n  {sys.executable} -m tests.fuzz.{target} {file}")
