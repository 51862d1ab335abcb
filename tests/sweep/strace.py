"""Record and inject with strace(1). Only the traced process itself is concerned, not its children."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

#: The path that the process under test asks for when our own code begins (``entry``).
BEGIN = "/the-sweep-begins"
_CALL = re.compile(r"^(\w+)\(")


class Call(msgspec.Struct, frozen=True):
    """One system call of a recorded life: the ``nth`` call of this name in the process."""

    name: str
    nth: int
    text: str


class Injection(msgspec.Struct, frozen=True):
    """Let the ``nth`` call of this name fail with ``error``."""

    name: str
    nth: int
    error: str

    def __str__(self) -> str:
        return f"{self.name}:{self.nth}:{self.error}"

    @classmethod
    def parse(cls, text: str) -> Injection:
        name, nth, error = text.split(":")
        return cls(name, int(nth), error)


def recording(output: Path) -> list[str]:
    return ["strace", "-qq", "-s", "80", "-e", "signal=none", "-o", str(output)]


def injecting(output: Path, injection: Injection) -> list[str]:
    call = injection.name
    return [
        *recording(output),
        *("-e", f"trace={call},newfstatat,stat"),
        *("-e", f"inject={call}:error={injection.error}:when={injection.nth}"),
    ]


def calls_of(output: Path) -> list[Call]:
    """Return the calls after our own code began, in their order."""
    counts: collections.Counter[str] = collections.Counter()
    found: list[Call] = []
    has_begun = False
    for line in output.read_text(errors="replace").splitlines():
        if (match := _CALL.match(line)) is None:
            continue
        counts[match[1]] += 1
        if BEGIN in line:
            has_begun = True
        elif has_begun:
            found.append(Call(match[1], counts[match[1]], line))
    return found


def injected_call(output: Path) -> str | None:
    """Return the line of the call that failed; None if it was not reached, or came before our own code."""
    lines: Sequence[str] = output.read_text(errors="replace").splitlines()
    begun = next((number for number, line in enumerate(lines) if BEGIN in line), len(lines))
    return next((line for line in lines[begun:] if "(INJECTED)" in line), None)
