"""The types of the library: pyright finds no mistake in the examples, and finds those that a user makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import require

ROOT = Path(__file__).parents[2]
PYRIGHT = Path(sys.prefix) / "pyright"

#: Wrong code, each line with the rule of pyright that says so.
MISTAKES = """\
import multibinder
multibinder.bind("127.0.0.1", "8000")  # reportArgumentType
multibinder.bind(b"127.0.0.1", 8000)  # reportArgumentType
multibinder.bind("127.0.0.1", 8000, timeout="10")  # reportArgumentType
multibinder.bind("127.0.0.1", 8000, wait=None)  # reportArgumentType
multibinder.bind("127.0.0.1", 8000, bakclog=5)  # reportCallIssue
multibinder.bind("127.0.0.1:8000", shards="all")  # reportArgumentType
multibinder.bind("127.0.0.1:8000", shards=2).accept()  # reportAttributeAccessIssue
multibinder.bind_many([8000])  # reportArgumentType
multibinder.release(8000)  # reportArgumentType
multibinder.sync([("127.0.0.1", 8000)])  # reportCallIssue
multibinder.bind("127.0.0.1", 8000).addresses  # reportAttributeAccessIssue
"""


def pyright(*arguments: str | Path) -> dict[str, Any]:
    """Return what pyright says about these files, or about those that pyproject.toml names, with its strict rules."""
    require("pyright", PYRIGHT.exists(), "pyright is not installed: 'make pyright' installs it")
    ended = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--outputjson", *arguments],
        env={**os.environ, "PYTHONPATH": str(PYRIGHT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode in (0, 1), ended.stderr or ended.stdout
    said: dict[str, Any] = json.loads(ended.stdout)
    return said


def test_pyright_finds_no_mistake_in_the_examples_and_in_code_as_a_user_writes_it() -> None:
    said = pyright()
    assert said["generalDiagnostics"] == []
    assert said["summary"]["filesAnalyzed"] >= 3


def test_pyright_finds_the_mistakes_of_a_user(tmp_path: Path) -> None:
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    found = {(each["range"]["start"]["line"], each["rule"]) for each in pyright(tmp_path)["generalDiagnostics"]}
    expected = [line.partition("  # ")[2] for line in MISTAKES.splitlines()]
    assert {(number, rule) for number, rule in enumerate(expected) if rule} <= found
