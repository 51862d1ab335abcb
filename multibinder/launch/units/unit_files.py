"""The text of a unit's settings, as its files have it: with quotes, variables and specifiers (systemd.syntax(7)).

``systemctl show`` tells command lines after its own parsing, and nobody can write them back from that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import msgspec

_SECTION = re.compile(r"\[(?P<name>[^\]]*)\]\Z")
#: systemd.service(5), "Command lines": prefixes of the path of the program.
_PREFIXES = re.compile(r"[-@:+!|]*")
#: A semicolon that is a word of its own ends a command.
_SEPARATOR = re.compile(r"\s;(?:\s|\Z)")


class Command(msgspec.Struct, frozen=True):
    """A command line of a unit. ``str()`` is its text.

    ``prefixes`` are the characters before the path of the program, as ``-``; ``text`` is all after them, as the unit's
    file has it.
    """

    prefixes: str
    text: str

    @classmethod
    def parse(cls, value: str) -> Command:
        prefixes = _PREFIXES.match(value)
        length = prefixes.end() if prefixes else 0
        return cls(value[:length], value[length:].strip())

    def __str__(self) -> str:
        return self.prefixes + self.text

    @property
    def program(self) -> str:
        """Return the path of the program."""
        return self.text.split(None, 1)[0].strip("\"'") if self.text else ""

    @property
    def words(self) -> list[str]:
        """Return the words of the text, as far as blanks alone tell: quotes are not looked at."""
        return self.text.split()

    @property
    def dollar(self) -> str:
        """Return how a ``$`` for the program is written: the prefix ``:`` turns systemd's variables off."""
        return "$" if ":" in self.prefixes else "$$"


def settings(texts: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Yield section, name and value of each setting in the text of a unit's files, in the order given.

    Lines that a backslash continues are joined by a blank; comments among them are left out.
    """
    for text in texts:
        section = ""
        for line in _joined(text):
            if found := _SECTION.match(line):
                section = found["name"]
            elif "=" in line:
                name, _, value = line.partition("=")
                yield section, name.strip(), value.strip()


def values(texts: Iterable[str], section: str, name: str) -> list[str]:
    """Return the values of a setting that is a list: an empty one forgets those before it."""
    found: list[str] = []
    for in_section, its_name, value in settings(texts):
        if (in_section, its_name) == (section, name):
            found = [*found, value] if value else []
    return found


def commands(texts: Iterable[str], name: str) -> list[Command]:
    """Return the commands of ``ExecStart=`` and its like. One line may have several, with semicolons between."""
    return [
        Command.parse(part.strip())
        for value in values(texts, "Service", name)
        for part in _SEPARATOR.split(value)
        if part.strip()
    ]


def _joined(text: str) -> Iterator[str]:
    unfinished = ""
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line[0] in "#;":
            if not line and unfinished:
                yield unfinished
                unfinished = ""
            continue
        if line.endswith("\\"):
            unfinished += line[:-1].rstrip() + " "
            continue
        yield unfinished + line
        unfinished = ""
    if unfinished:
        yield unfinished.strip()
