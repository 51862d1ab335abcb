"""``default-path config`` and ``default-path parent`` of HAProxy (2.4 and later), in files that lie elsewhere.

They make relative paths start where the configuration file is. A rendered file is in the instance's directory, and not
where its template is. So its directive becomes ``default-path origin DIR``, with the directory of the template.

The directive counts for the files after it, too, each in its own place. Where the next file needs another one, a global
section with it is put between them: at the end of a rendered file, or else at the beginning of the next one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec

#: The directive stands at the beginning of a line of a global section. Anywhere else HAProxy refuses it.
_DIRECTIVE = re.compile(r"(?m)^([ \t]*default-path[ \t]+)(['\"]?)(config|parent|current|origin)\2(?![^ \t\r\n#])")
_CONDITION = re.compile(r"(?m)^[ \t]*\.(if|endif)\b")
_RELATIVE = ("config", "parent")
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:,@=~%")


class ConfigFile(msgspec.Struct, frozen=True):
    """A file of a configuration, in the order in which HAProxy reads them.

    ``directory`` is where the user has it. ``target`` is its name among the rendered files; None if HAProxy reads the
    user's own file, which has ``text``.
    """

    directory: str
    target: str | None
    text: str = ""


def relocate(files: Sequence[ConfigFile], texts: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return ``texts``, by target name, with relative paths that start where the user's files are, and warnings.

    No line gets another number, unless a rendered file follows one that is not rendered and has the directive.
    """
    result = dict(texts)
    warnings: list[str] = []
    wanted = actual = "current"  # the mode that the user wants, and the one that HAProxy would be in
    maybe: str | None = None  # where the mode was set in a condition
    before: str | None = None  # the target of the file before this one
    for file in files:
        text, prefix = (result[file.target] if file.target is not None else file.text), ""
        if wanted in _RELATIVE:
            needed = wanted if file.target is None else _origin(file.directory, wanted)
            if needed != actual:
                if maybe:
                    warnings.append(
                        f"{maybe}: whether this counts for {file.target or file.directory} depends on a condition, and "
                        f"multibinder takes it that it does; 'default-path origin DIR' in each file is certain"
                    )
                section = f"global\n    default-path {needed}\n"
                if before is not None and (not result[before] or result[before].endswith("\n")):
                    result[before] += section
                elif file.target is not None:
                    prefix = section
                actual = needed
        directives = list(_DIRECTIVE.finditer(text))
        if directives:
            wanted = actual = directives[-1][3]
            maybe = _place(file, text, directives[-1]) if _in_condition(text, directives[-1].start()) else None
        if file.target is not None:
            if wanted in _RELATIVE and directives:
                actual = _origin(file.directory, wanted)
            result[file.target] = prefix + _DIRECTIVE.sub(partial(_moved, file.directory), text)
        before = file.target
    return result, warnings


def _moved(directory: str, match: re.Match[str]) -> str:
    return f"{match[1]}{_origin(directory, match[3])}" if match[3] in _RELATIVE else match[0]


def _origin(directory: str, mode: str) -> str:
    """Return the arguments of a ``default-path`` that means ``mode`` for a file in ``directory``."""
    path = (directory if mode == "config" else f"{directory}/..").encode(errors="surrogateescape")
    # HAProxy reads \xHH in double quotes. So the text stays ASCII, and nothing in a name is special.
    quoted = "".join(chr(byte) if byte in _PLAIN else f"\\x{byte:02x}" for byte in path)
    return f'origin "{quoted}"'


def _in_condition(text: str, position: int) -> bool:
    depth = 0
    for match in _CONDITION.finditer(text, 0, position):
        depth += 1 if match[1] == "if" else -1
    return depth > 0


def _place(file: ConfigFile, text: str, match: re.Match[str]) -> str:
    return f"{file.target or file.directory}:{text.count(chr(10), 0, match.start()) + 1}"
