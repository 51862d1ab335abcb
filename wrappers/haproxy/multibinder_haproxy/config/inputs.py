"""What a rendering depends on beside its sources: the version, and the environment variables that it read.

A later start compares them with the present ones. If all are equal, and all sources have the same content, rendering
again would give the same text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from multibinder import __version__
from multibinder_haproxy.reexec.environment import digest


class Inputs(msgspec.Struct, frozen=True):
    """What one rendering depended on, except its sources.

    ``version`` is multibinder's; empty in the record of a version that did not know. ``volatile`` is True if the
    templates could have read something that is not recorded, so that another rendering may give another text.
    ``environment`` has each variable that a template looked for; None if it was not set. ``whole_environment`` is
    the digest of all variables; empty unless a template read them all. These are private: values can be passwords.
    """

    version: str = ""
    volatile: bool = True
    environment: dict[str, str | None] = {}
    whole_environment: str = ""


class InputRecorder:
    """Collects the inputs of one rendering."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._names: set[str] = set()
        # An empty dict is read without a call that could be noticed (json's encoder).
        self._whole = not environment
        self._volatile = False
        #: ``env`` in a template.
        self.env = Environment(environment, self._names.add, self._record_whole_environment)

    def record_volatile(self) -> None:
        """Record that a template could have read something that is not recorded."""
        self._volatile = True

    @contextlib.contextmanager
    def noticing(self) -> Iterator[Callable[[], bool]]:
        """Yield a function that returns whether ``record_volatile`` was called within the block."""
        before, self._volatile = self._volatile, False
        noticed = False
        try:
            yield lambda: noticed
        finally:
            noticed, self._volatile = self._volatile, self._volatile or before

    def inputs(self) -> Inputs:
        looked_for = {name: self._environment.get(name) for name in sorted(self._names)}
        return Inputs(
            version=__version__,
            volatile=self._volatile or not _fits_json(looked_for),
            environment=looked_for if _fits_json(looked_for) else {},
            whole_environment=digest(self._environment) if self._whole else "",
        )

    def _record_whole_environment(self) -> None:
        self._whole = True


class Environment(dict[str, str]):
    """``env`` in a template. It reports which variables are looked for, and whether all are read.

    Lookups are in three methods. Every other method of a dict depends on all variables, or changes them so that later
    lookups do.
    """

    def __init__(
        self, variables: Mapping[str, str], record: Callable[[str], None], record_all: Callable[[], None]
    ) -> None:
        super().__init__(variables)
        # Two underscores: a variable of the environment must not have the name.
        self.__record = record
        self.__record_all = record_all

    def __getitem__(self, name: str) -> str:
        self.__look_for(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.__look_for(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.__look_for(name)
        return super().__contains__(name)

    def __iter__(self) -> Iterator[str]:
        self.__record_all()
        return super().__iter__()

    def __look_for(self, name: object) -> None:
        if isinstance(name, str):
            self.__record(name)


def _reading_all(method: Callable[..., Any]) -> Callable[..., Any]:
    def method_that_reads_all(self: Any, *arguments: Any, **named: Any) -> Any:
        iter(self)  # which records it
        return method(self, *arguments, **named)

    return method_that_reads_all


_READ_ALL = (
    "__len__ __eq__ __ne__ __repr__ __or__ __ror__ __ior__ __reversed__ __delitem__ __setitem__ "
    "keys values items copy pop popitem setdefault update clear"
)
for _name in _READ_ALL.split():
    setattr(Environment, _name, _reading_all(getattr(dict, _name)))

# Jinja2 quotes the name of the class in the error about a missing variable.
Environment.__name__ = Environment.__qualname__ = "environment"
Environment.__module__ = "builtins"


def _fits_json(names: Mapping[str, str | None]) -> bool:
    """Return whether these are UTF-8; a variable of the environment is any bytes."""
    try:
        "".join([*names, *filter(None, names.values())]).encode()
    except UnicodeEncodeError:
        return False
    return True
