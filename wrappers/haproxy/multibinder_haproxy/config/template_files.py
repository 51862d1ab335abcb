"""The names of templates, and of the files that they are rendered to."""

from __future__ import annotations

import os
from collections.abc import Iterator

TEMPLATE_SUFFIXES = (".j2", ".mb", ".erb")
#: HAProxy reads the files of a directory that -f names only if they have this suffix.
CONFIG_SUFFIX = ".cfg"
#: The suffixes in such a directory that count once it is rendered (see templates_in).
RENDERED_SUFFIXES = (CONFIG_SUFFIX, *(f"{CONFIG_SUFFIX}{suffix}" for suffix in TEMPLATE_SUFFIXES))


def is_template(path: str) -> bool:
    return path.endswith(TEMPLATE_SUFFIXES)


def without_suffix(name: str) -> str:
    """Return the name without the suffix of a template, if it has one."""
    return os.path.splitext(name)[0] if is_template(name) else name


def templates_in(directory: str) -> Iterator[tuple[str, str]]:
    """Yield ``(path, target name)`` of the files in a configuration directory, be they templates or not.

    HAProxy reads the files whose names end in .cfg and do not begin with a dot (management guide, -f <dir>). So a
    template counts if its name without the template's suffix ends in .cfg.
    """
    for name in sorted(os.listdir(directory)):
        target = without_suffix(name)
        path = os.path.join(directory, name)
        if not name.startswith(".") and target.endswith(CONFIG_SUFFIX) and os.path.isfile(path):
            yield path, target
