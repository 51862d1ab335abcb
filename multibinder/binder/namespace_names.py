"""The names of network namespaces: for people, and for rules of the policy."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from multibinder.binder.key import own_netns
from multibinder.kernel import netns
from multibinder.wire.options import COOKIE

#: The designation of the binder's own namespace in a rule, and of one whose other designations cannot be found.
OWN, UNKNOWN = ".", "?"
#: Names are read again when one was added or removed. A name is there before its namespace is mounted on it, so they
#: are also read again after this time, and whenever a client names a namespace.
_NAMES_FOR_S = 0.5
_MOST_REMEMBERED = 4096


class _Names:
    """The names in /run/netns, by cookie. ``are_certain`` is false if some namespace may not be looked at."""

    def __init__(self) -> None:
        self.are_certain = True
        self._read_at, self._changed = 0.0, 0
        self._by_cookie: dict[int, tuple[str, ...]] = {}
        # An inode number can be used again, but not within one tick of the clock.
        self._cookies: dict[tuple[int, int], int] = {}

    def forget(self) -> None:
        self._read_at = 0.0

    def of(self, cookie: int) -> tuple[str, ...]:
        now, changed = time.monotonic(), netns.names_changed_at()
        if now - self._read_at > _NAMES_FOR_S or changed != self._changed:
            self._changed = changed
            self._by_cookie, self.are_certain = {}, True
            for name in netns.names():
                if (found := self.cookie_of(netns.path_of_name(name))) is not None:
                    self._by_cookie[found] = (*self._by_cookie.get(found, ()), name)
            self._read_at = now
        return self._by_cookie.get(cookie, ())

    def cookie_of(self, path: str) -> int | None:
        """Return the cookie of the namespace that a path leads to; None if it leads to none."""
        try:
            descriptor = netns.open_netns(path)
        except PermissionError:
            self.are_certain = False
            return None
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            known = (status.st_ino, status.st_ctime_ns)
            if known not in self._cookies:
                if len(self._cookies) >= _MOST_REMEMBERED:
                    self._cookies.clear()
                self._cookies[known] = netns.cookie_of_netns(descriptor)
            return self._cookies[known]
        except OSError:
            self.are_certain = False
            return None
        finally:
            os.close(descriptor)


_names = _Names()
forget = _names.forget


def names_of(cookie: int) -> tuple[str, ...]:
    """Return the names that ``ip netns`` has given to a namespace."""
    return _names.of(cookie)


def name_of(cookie: int) -> str:
    """Return a name for people: that in /run/netns, or ``cookie:N``. Empty for 0, the binder's own namespace."""
    return next(iter(_names.of(cookie)), f"{COOKIE}{cookie}") if cookie else ""


def designations(canonical: str, paths: Iterable[str]) -> frozenset[str]:
    """Return all by which a rule can name a namespace: ``cookie:N``, names, and those of ``paths`` that lead to it.

    ``canonical`` is ``cookie:N``, or empty for the binder's own namespace, which is ``.``. ``?`` is among them if it
    is not certain which names it has.
    """
    cookie = int(canonical.removeprefix(COOKIE)) if canonical else own_netns()
    found = {canonical or OWN, *_names.of(cookie)}
    found |= {path for path in paths if _names.cookie_of(path) == cookie}
    if canonical and not _names.are_certain:
        found.add(UNKNOWN)
    return frozenset(found)
