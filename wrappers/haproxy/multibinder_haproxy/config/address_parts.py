"""The variables in the address of a plain bind, for a template that reads the same ones from ``env``."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

#: An address without quotes and escapes: env_expand() in HAProxy's tools.c expands it, which knows no defaults.
_BARE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
_IN_QUOTES = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)(?:-([^}]*))?\}|([A-Za-z_][A-Za-z0-9_]*))")
_QUOTING = re.compile(r"""["'\\#]""")


class Part(msgspec.Struct, frozen=True):
    """A part of an address: ``text``, or the variable ``name``. ``default`` is its value if it is not set."""

    text: str = ""
    name: str = ""
    default: str | None = None


def parts_of(raw: str) -> Sequence[Sequence[Part]] | None:
    """Return the parts of each element of a bind's list, as it is written; None for quoting that is not understood."""
    is_quoted = len(raw) > 1 and raw[0] == raw[-1] == '"'
    inside = raw[1:-1] if is_quoted else raw
    if _QUOTING.search(inside):
        return None
    elements: list[list[Part]] = [[]]
    at = 0
    for found in (_IN_QUOTES if is_quoted else _BARE).finditer(inside):
        _add(elements, inside[at : found.start()])
        if is_quoted:
            elements[-1].append(Part(name=found[1] or found[3], default=found[2] or ""))
        else:
            elements[-1].append(Part(name=found[1] or found[2], default=""))
        at = found.end()
    _add(elements, inside[at:])
    if any("$" in part.text for parts in elements for part in parts):
        return None
    # A comma at the end of a list is nothing to HAProxy.
    return elements[:-1] if len(elements) > 1 and not elements[-1] else elements


def _add(elements: list[list[Part]], text: str) -> None:
    first, *others = text.split(",")
    elements[-1] += [Part(first)] if first else []
    elements += [[Part(each)] if each else [] for each in others]
