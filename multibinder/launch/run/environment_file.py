"""Read a file of environment variables as systemd reads EnvironmentFile= (systemd.exec(5)).

The grammar is that of parse_env_file_internal() in systemd's src/basic/env-file.c: lines of NAME=VALUE; ``#`` and ``;``
begin a comment; a backslash continues a line; quotes may span lines. No variable is substituted.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from multibinder.kernel.process import printable
from multibinder.launch.errors import LaunchError

_NEWLINE = "\n\r"
_WHITESPACE = " \t\n\r"
_COMMENT = "#;"
#: What a backslash in double quotes takes its meaning from (SHELL_NEED_ESCAPE).
_ESCAPABLE = '"\\`$'
_LARGEST = 1 << 20


class EnvironmentFileError(LaunchError):
    """The file of environment variables cannot be read."""


def read(path: str, warn: Callable[[str], object]) -> dict[str, str]:
    """Return the variables of a file. With a ``-`` before the path, a file that does not exist is empty.

    A name that no variable can have is left out, as systemd does, and ``warn`` gets a sentence about it. Raises
    EnvironmentFileError.
    """
    optional, path = path.startswith("-"), path.removeprefix("-")
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST + 1)
    except FileNotFoundError:
        if optional:
            return {}
        raise EnvironmentFileError(f"the environment file {path} does not exist") from None
    except OSError as error:
        raise EnvironmentFileError(f"the environment file {path} cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST:
        raise EnvironmentFileError(f"the environment file {path} has more than {_LARGEST} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise EnvironmentFileError(f"the environment file {path}, line {line}: this is not UTF-8") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise EnvironmentFileError(f"the environment file {path}, line {line}: there is a NUL character")
    found = parse(text)
    for name in [name for name in found if not _is_name(name)]:
        del found[name]
        warn(f"the environment file {path}: '{printable(name)}' is left out: no variable can have this name")
    return found


def parse(text: str) -> dict[str, str]:
    """Return the variables of a text; the last value of each. Names are not checked."""
    found: dict[str, str] = {}
    position = 0
    while (position := _start_of_name(text, position)) < len(text):
        end = position + 1  # the first character belongs to the name, even "="
        while end < len(text) and text[end] not in _NEWLINE and text[end] != "=":
            end += 1
        if end == len(text) or text[end] != "=":
            position = end  # a line without a value is ignored
            continue
        name = text[position:end].rstrip(_WHITESPACE)
        value, position = _value(text, end + 1)
        found[name] = value
    return found


def _start_of_name(text: str, position: int) -> int:
    """Skip white space and comments. A comment does not end at a newline after a backslash (before systemd 254)."""
    while position < len(text):
        if text[position] in _COMMENT:
            while position < len(text) and text[position] not in _NEWLINE:
                position += 2 if text[position] == "\\" else 1
        elif text[position] in _WHITESPACE:
            position += 1
        else:
            break
    return min(position, len(text))


def _value(text: str, position: int) -> tuple[str, int]:
    """Return the value that begins at ``position``, and the position after it."""
    value: list[str] = []
    while position < len(text) and text[position] not in _NEWLINE:
        character = text[position]
        if character in "'\"":
            position = _quoted(text, position + 1, character, value)
        elif character in _WHITESPACE:
            position += 1
        else:
            position = _unquoted(text, position, value)
            break
    return "".join(value), position


def _unquoted(text: str, position: int, value: list[str]) -> int:
    """Append the rest of a value, to the end of its line: quotes in it are characters."""
    length = len(value)  # white space before this is part of the value
    while position < len(text) and text[position] not in _NEWLINE:
        if text[position] != "\\":
            value.append(text[position])
            if text[position] not in _WHITESPACE:
                length = len(value)
        else:
            position += 1
            if position < len(text) and text[position] not in _NEWLINE:
                value.append(text[position])
            length = len(value)
        position += 1
    del value[length:]
    return position


def _quoted(text: str, position: int, quote: str, value: list[str]) -> int:
    """Append what is in quotes. Those that do not end reach to the end of the file."""
    while position < len(text) and text[position] != quote:
        if text[position] == "\\" and quote == '"':
            position += 1
            character = text[position : position + 1]
            if character in _ESCAPABLE:
                value.append(character)
            elif character != "\n":
                value.append(f"\\{character}")
        else:
            value.append(text[position])
        position += 1
    return position + 1


def _is_name(name: str) -> bool:
    return name.isascii() and name.replace("_", "a").isalnum() and not name[0].isdigit()


def expand(path: str, directory: str | None) -> str:
    """Return the path from ``directory``; a ``-`` before it stays."""
    optional = "-" if path.startswith("-") else ""
    return optional + os.path.join(directory or os.getcwd(), path.removeprefix("-"))
