"""Check that the tests import the same code that the installed commands run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import multibinder_haproxy

import multibinder
from tests.support.commands import clean_environment

_PRINT = "import multibinder, multibinder_haproxy; print(multibinder.__file__, multibinder_haproxy.__file__, sep='\\n')"


def difference(binaries: Path = Path(sys.executable).parent) -> str | None:
    """Return a sentence about the command in ``binaries`` that runs other code than this process; None if all agree.

    ``multibinder serve`` becomes ``python -P -m multibinder.cli.binder_main``, which finds the installed package and
    never the one in the working directory. With an environment of another checkout the tests would test half of each.
    """
    ours = [_path(multibinder.__file__), _path(multibinder_haproxy.__file__)]
    commands = [binaries / name for name in ("multibinder", "multibinder-haproxy")]
    interpreters = {"python -P": sys.executable} | {
        command.name: _interpreter_of(command) for command in commands if command.exists()
    }
    found: dict[str, list[Path] | str] = {python: _imported_by(python) for python in set(interpreters.values())}
    for name, python in interpreters.items():
        if found[python] != ours:
            return (
                f"the tests import {' and '.join(map(str, ours))}, but {name} ({python}) runs "
                f"{_words(found[python])}: run the tests with the environment of this checkout (make test)"
            )
    return None


def _imported_by(python: str) -> list[Path] | str:
    try:
        done = subprocess.run(
            [python, "-P", "-c", _PRINT], env=clean_environment(), cwd="/", capture_output=True, text=True, check=False
        )
    except OSError as error:
        return str(error)
    if done.returncode:
        return done.stderr.strip().rpartition("\n")[2]
    return [_path(line) for line in done.stdout.splitlines()]


def _interpreter_of(command: Path) -> str:
    """Return the interpreter of a script that pip wrote. It is in the first line, or in a line for sh if it is long."""
    start = command.read_text(errors="replace")[:1000]
    match = re.search(r"^(?:#!|'''exec' )\"?(/[^\"\n]*?python[\d.]*)\"?(?:\s|$)", start, re.MULTILINE)
    return match[1] if match else sys.executable


def _path(file: str | None) -> Path:
    assert file is not None
    return Path(file).resolve()


def _words(found: list[Path] | str) -> str:
    return found if isinstance(found, str) else " and ".join(map(str, found))
