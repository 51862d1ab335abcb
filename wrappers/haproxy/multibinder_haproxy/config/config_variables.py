"""The environment in which HAProxy reads a configuration, as the configuration itself changes it.

configuration.txt, 2.3 "Environment variables", and "setenv", "presetenv", "unsetenv" and "resetenv" in 3.1. In quotes a
variable is expanded with the line (parse_line() in tools.c), in the address of a bind also without (env_expand()).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from multibinder_haproxy.config.lines import Line
from multibinder_haproxy.reexec.environment import is_set_by_haproxy

#: It stands for the value of a variable that only HAProxy knows. No configuration has this character.
UNKNOWN = "\ue001"
#: A variable outside of quotes: env_expand() takes the longest name, and knows neither defaults nor lists.
_BARE = re.compile(r"\$(\{?)([A-Za-z0-9_]*)(\}?)")
_NAME = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)")


class ConfigVariables(Mapping[str, str]):
    """The variables of a configuration's environment.

    A variable that HAProxy itself sets, or that ``is_hidden``, has the value UNKNOWN.
    """

    def __init__(self, environment: Mapping[str, str], is_hidden: Callable[[str], bool] = lambda name: False) -> None:
        self._values = dict(environment)
        self._is_hidden = is_hidden

    def __getitem__(self, name: str) -> str:
        if is_set_by_haproxy(name) or self._is_hidden(name):
            return UNKNOWN
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def apply(self, line: Line) -> None:
        """Change the variables as a line of a global section does."""
        arguments = [str(word) for word in line.arguments]
        match line.keyword, arguments:
            case "setenv", [name, value, *_]:
                self._values[name] = value
            case "presetenv", [name, value, *_]:
                self._values.setdefault(name, value)
            case "unsetenv", names:
                for name in names:
                    self._values.pop(name, None)
            case "resetenv", names:
                self._values = {name: value for name, value in self._values.items() if name in names}

    def expand(self, address: str) -> str:
        """Return an address with the values of its bare variables. One that is not set is empty."""

        def value(found: re.Match[str]) -> str:
            brace, name, end = found.groups()
            rest = end if end and not brace else ""
            return (self.get(name, "") if name else "") + rest

        return _BARE.sub(value, address)


def names_in(text: str) -> set[str]:
    """Return the names of all variables that a text may refer to."""
    return set(_NAME.findall(text))
