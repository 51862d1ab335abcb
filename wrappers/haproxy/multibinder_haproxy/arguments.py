"""HAProxy's command line, as far as the wrapper must understand it (haproxy(1); copy_argv() in haproxy.c)."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from multibinder.launch.errors import UsageError

_WITH_VALUE = {"-C", "-L", "-N", "-S", "-f", "-m", "-n", "-p", "-x", "-cc"}
_WITH_PIDS = {"-sf", "-st"}
#: The options that touch a running process or a file, and -q, which hides why a configuration is refused. -W and -Ws
#: stay: a 'program' section is refused without them, and with -c neither of them forks.
_NOT_FOR_CHECK = {"-D", "-S", "-p", "-q", "-x", *_WITH_PIDS}


class Argument(msgspec.Struct, frozen=True):
    """One option with its values, or (``flag`` empty) a configuration file after ``--``."""

    flag: str
    values: tuple[str, ...] = ()

    @property
    def names_config(self) -> bool:
        return self.flag in ("-f", "")


def parse(arguments: Sequence[str]) -> list[Argument]:
    """Split HAProxy's arguments; ``join`` is the inverse. Raises UsageError if a value is missing."""
    found: list[Argument] = []
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if flag == "--":
            found.extend(Argument("", (path,)) for path in rest)
            break
        if flag in _WITH_VALUE:
            if not rest:
                raise UsageError(f"HAProxy's option {flag} needs a value")
            found.append(Argument(flag, (rest.pop(0),)))
        elif flag in _WITH_PIDS:
            pids = []
            while rest and not rest[0].startswith("-"):
                pids.append(rest.pop(0))
            found.append(Argument(flag, tuple(pids)))
        else:
            found.append(Argument(flag))
    return found


def join(arguments: Sequence[Argument]) -> list[str]:
    """Return the words of a command line; ``parse`` is the inverse."""
    words = [word for argument in arguments if argument.flag for word in (argument.flag, *argument.values)]
    files = [path for argument in arguments if not argument.flag for path in argument.values]
    return [*words, "--", *files] if files else words


def working_directory(arguments: Sequence[Argument], started_in: str | None = None) -> str:
    """Return the directory of HAProxy's relative paths: -C changes it before any file is read."""
    directory = started_in or os.getcwd()
    for argument in arguments:
        if argument.flag == "-C":
            directory = os.path.join(directory, *argument.values)
    return directory


def master_socket(arguments: Sequence[Argument]) -> str | None:
    """Return the path of the master CLI that -S names; None without -S. Raises UsageError for another socket."""
    for argument in arguments:
        if argument.flag == "-S":
            address = argument.values[0].partition(",")[0].removeprefix("unix@")
            if not address.startswith("/"):
                raise UsageError(
                    f"-S {argument.values[0]}: the wrapper talks to HAProxy's master over a Unix socket with an "
                    "absolute path; give one, or leave -S out and it makes its own"
                )
            return address
    return None


def for_check(arguments: Sequence[Argument]) -> list[Argument]:
    """Return the arguments with which ``haproxy -c`` parses the same configuration, and does nothing else.

    With -V it prints its warnings also if the configuration says ``quiet``.
    """
    kept = [argument for argument in arguments if argument.flag not in _NOT_FOR_CHECK]
    return [Argument("-c"), Argument("-V"), *kept]


def old_workers(arguments: Sequence[Argument]) -> list[int]:
    """Return the workers to replace: HAProxy's master puts -sf or -st in front of the arguments of a re-exec."""
    return [int(pid) for argument in arguments if argument.flag in _WITH_PIDS for pid in argument.values]
