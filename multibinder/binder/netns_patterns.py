"""Patterns of network namespaces in the policy.

::

    "blue", "web-*"   a name that 'ip netns' has given; * and ? as in a shell
    "/run/app/ns"     the namespace that this path leads to at the moment of the request
    "."               the binder's own
    "*"               every one, the binder's own too
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from multibinder.binder.namespace_names import OWN, UNKNOWN
from multibinder.wire.errors import AddressError
from multibinder.wire.options import COOKIE, check_netns

#: Matches every namespace.
ANY = "*"
WILDCARDS = set("*?[")


def parse_netns(text: str) -> str:
    """Return the pattern. Raises AddressError."""
    if text in (ANY, OWN):
        return text
    check_netns(text)
    if not text or text.isdecimal() or text.startswith(COOKIE):
        raise AddressError(
            f"netns {text!r} is no pattern: write a name ('ip netns'), an absolute path, \"{OWN}\" for the binder's "
            f'own network namespace, or "{ANY}". A PID or cookie is another namespace\'s one day'
        )
    if text.startswith("/") and WILDCARDS & set(text):
        raise AddressError(f"netns {text!r} is a path with a wildcard: only names may have one")
    return text


def matches(pattern: str, designations: AbstractSet[str], *, allow: bool) -> bool:
    """Return whether a pattern means the namespace with these designations (``namespace_names.designations``).

    If it is not certain which names the namespace has, a rule that denies by name denies it.
    """
    if pattern == ANY or pattern in designations:
        return True
    if pattern == OWN:
        return False
    if not allow and UNKNOWN in designations:
        return True
    names = (each for each in designations if not each.startswith(("/", COOKIE)) and each not in (OWN, UNKNOWN))
    return not pattern.startswith("/") and any(fnmatch.fnmatchcase(name, pattern) for name in names)


def cover(earlier: Iterable[str], later: Iterable[str]) -> bool:
    """Return whether the patterns of ``earlier`` match each namespace that one of ``later`` matches."""
    return all(any(_covers(one, other) for one in earlier) for other in later)


def _covers(one: str, other: str) -> bool:
    if one in (ANY, other):
        return True
    is_name = other not in (ANY, OWN) and not other.startswith("/") and not WILDCARDS & set(other)
    return is_name and one != OWN and fnmatch.fnmatchcase(other, one)
