"""HAProxy's command line, as far as the wrapper must understand it (haproxy(1); copy_argv() in haproxy.c)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import msgspec

from multibinder_haproxy.errors import UsageError

_WITH_VALUE = {"-C", "-L", "-N", "-S", "-f", "-m", "-n", "-p", "-x", "-cc"}
_WITH_PIDS = {"-sf", "-st"}
#: What makes a process of its own, or touches the running one; a check must do neither.
_NOT_FOR_CHECK = {"-W", "-Ws", "-D", "-S", "-p", "-x", *_WITH_PIDS}
TEMPLATE_SUFFIXES = (".j2", ".mb", ".erb")
#: What HAProxy reads of a directory that -f names, and what is rendered to such a file (see templates_in).
CONFIG_SUFFIX = ".cfg"
RENDERED_SUFFIXES = (CONFIG_SUFFIX, *(f"{CONFIG_SUFFIX}{suffix}" for suffix in TEMPLATE_SUFFIXES))


class Argument(msgspec.Struct, frozen=True):
    """One option with its values, or (``flag`` empty) a configuration file after ``--``."""

    flag: str
    values: tuple[str, ...] = ()

    @property
    def names_config(self) -> bool:
        return self.flag in ("-f", "")


def parse(arguments: Sequence[str]) -> list[Argument]:
    """Split HAProxy's arguments; what ``parse`` splits, ``join`` puts together again."""
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
    words = [word for argument in arguments if argument.flag for word in (argument.flag, *argument.values)]
    files = [path for argument in arguments if not argument.flag for path in argument.values]
    return [*words, "--", *files] if files else words


def working_directory(arguments: Sequence[Argument], started_in: str | None = None) -> str:
    """Where HAProxy looks for relative paths: -C changes it before any file is read."""
    directory = started_in or os.getcwd()
    for argument in arguments:
        if argument.flag == "-C":
            directory = os.path.join(directory, *argument.values)
    return directory


def master_socket(arguments: Sequence[Argument]) -> str | None:
    """The path of the master CLI that -S names; None without -S. Only a Unix socket will do."""
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
    """The same configuration, to be parsed by ``haproxy -c`` and nothing else."""
    return [Argument("-c"), *(argument for argument in arguments if argument.flag not in _NOT_FOR_CHECK)]


def old_workers(arguments: Sequence[Argument]) -> list[int]:
    """The workers that HAProxy's master wants to replace: -sf or -st, put in front of a re-exec's arguments."""
    return [int(pid) for argument in arguments if argument.flag in _WITH_PIDS for pid in argument.values]


def templates_in(directory: str) -> Iterator[tuple[str, str]]:
    """``(path, target name)`` of what a configuration directory holds, template or not.

    HAProxy reads the files whose names end in .cfg and do not begin with a dot (configuration manager, -f <dir>); so
    a template counts when its name ends in .cfg and a template suffix, or becomes such a name without it.
    """
    for name in sorted(os.listdir(directory)):
        target = without_suffix(name)
        path = os.path.join(directory, name)
        if not name.startswith(".") and target.endswith(CONFIG_SUFFIX) and os.path.isfile(path):
            yield path, target


def is_template(path: str) -> bool:
    return path.endswith(TEMPLATE_SUFFIXES)


def without_suffix(name: str) -> str:
    return os.path.splitext(name)[0] if is_template(name) else name
