"""What ``run`` requires of HAProxy's command line, and adds to it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence

from multibinder.launch.errors import UsageError
from multibinder_haproxy.arguments import Argument
from multibinder_haproxy.config.template_files import templates_in

#: The keyword with which a configuration itself asks for the master-worker mode (HAProxy up to 3.4).
_DAEMON = re.compile(r"^[ \t]*(daemon)[ \t\r]*(?:#.*)?$", re.MULTILINE)
_MASTER_WORKER = re.compile(r"^[ \t]*master-worker\b", re.MULTILINE)


def executable(program: str) -> str:
    """Return the absolute path of HAProxy. Raises UsageError."""
    if "/" in program:
        candidates = [os.path.abspath(program)]
    else:
        candidates = [os.path.join(entry, program) for entry in os.get_exec_path()]
    for path in candidates:
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise UsageError(f"{program}: no such program; install HAProxy (Debian: apt-get install haproxy) or give its path")


def started_in(arguments: Sequence[Argument]) -> str:
    """Return the directory of this process. Raises UsageError if it was removed and no -C leads out of it."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        if any(argument.flag == "-C" and os.path.isabs(argument.values[0]) for argument in arguments):
            return "/"
        raise UsageError(
            "the working directory was removed, and HAProxy loads nothing there; change to a directory that exists, or "
            "give HAProxy one with -C"
        ) from None


def mode(arguments: Sequence[Argument], base: str) -> list[Argument]:
    """Return what HAProxy's arguments lack for a master that stays in the foreground. Raises UsageError.

    ``base`` is the directory of relative paths.
    """
    flags = {argument.flag for argument in arguments}
    if flags & {"-c", "-cc"}:
        raise UsageError("-c and -cc only check: use 'multibinder-haproxy check' for that")
    if "-D" in flags:
        raise UsageError("-D would take HAProxy away from its supervisor: leave it out and use -Ws")
    if "-Ws" in flags:
        return []
    # With -W alone, 'daemon' in a configuration sends HAProxy to the background, where its supervisor loses it. -Ws
    # and -db overrule it (haproxy.c, MODE_FOREGROUND).
    foreground = [] if "-db" in flags else [Argument("-db")]
    if "-W" in flags:
        return foreground
    if any(_MASTER_WORKER.search(text_of(path)) for path in config_files(arguments, base)):
        # The master CLI of -S needs the option (HAProxy 3.1), not only the keyword.
        return [Argument("-W"), *foreground]
    raise UsageError("HAProxy must run in master-worker mode to reload: add -Ws (or -W) to its arguments")


def config_files(arguments: Sequence[Argument], base: str) -> Iterator[str]:
    """Yield the files that -f names, templates or not, also those in directories."""
    for argument in arguments:
        if argument.names_config:
            path = os.path.join(base, argument.values[0])
            yield from (each for each, _ in templates_in(path)) if os.path.isdir(path) else [path]


def overruled(arguments: Sequence[Argument], texts: Mapping[str, str]) -> list[str]:
    """Return a warning for each ``daemon`` that ``mode`` overrules. ``texts`` are the rendered files by target name."""
    if any(argument.flag == "-Ws" for argument in arguments):
        return []
    return [
        f"{target}:{text.count(chr(10), 0, found.start(1)) + 1}: 'daemon' would take HAProxy away from its supervisor, "
        "so it does not count (-db); leave it out, or use -Ws"
        for target, text in texts.items()
        for found in _DAEMON.finditer(text)
    ]


def text_of(path: str) -> str:
    """Return the text of a file, each byte as one character. It is empty if the file cannot be read."""
    # A file that is not regular (-f /dev/fd/63) can be read only once, and HAProxy must read it.
    if os.path.isfile(path):
        with contextlib.suppress(OSError), open(path, encoding="latin-1") as file:
            return file.read()
    return ""
