"""Environments of Jinja2 that notice when a template reads something that is recorded nowhere.

A template without ``--sandbox`` is a program: it can read any file, or the clock. It can do so only through attributes
that Jinja2's sandbox would refuse, and through the few other ways that are here.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.filters
import jinja2.sandbox
import jinja2.utils

#: A field of str.format() that reads an attribute or an item: ``{0.name}``, ``{env[HOME]}``.
_FIELD_OF_A_FIELD = re.compile(r"\{[^{}:!]*[.\[]")
#: What dates in a --vars file have without the clock and the time zone.
_OF_THE_DATE_ITSELF = frozenset(
    [
        "year",
        "month",
        "day",
        "hour",
        "minute",
        "second",
        "microsecond",
        "tzinfo",
        "date",
        "time",
        "isoformat",
        "weekday",
    ]
)


class WatchedEnvironment(jinja2.Environment):
    """Calls ``notice`` when a template may read something that is not recorded."""

    def __init__(self, notice: Callable[[], None], **options: Any) -> None:
        super().__init__(**options)
        self._notice = notice
        self.filters["attr"] = self._attr
        self.filters["random"] = self._random
        self.globals["lipsum"] = self._lipsum

    def getattr(self, obj: Any, attribute: str) -> Any:
        self._look_at(obj, attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        # A name that is no item is looked up as an attribute. Filters (map, sort, groupby) come here too.
        if isinstance(argument, str):
            self._look_at(obj, argument)
        return super().getitem(obj, argument)

    @jinja2.pass_context
    def _attr(self, context: jinja2.runtime.Context, obj: Any, name: Any) -> Any:
        self._look_at(obj, str(name))
        return jinja2.filters.do_attr(self, obj, name)

    @jinja2.pass_context
    def _random(self, context: jinja2.runtime.Context, sequence: Any) -> Any:
        self._notice()
        return jinja2.filters.do_random(context, sequence)

    def _lipsum(self, *arguments: Any, **named: Any) -> str:
        self._notice()
        return jinja2.utils.generate_lorem_ipsum(*arguments, **named)

    def _look_at(self, obj: Any, attribute: str) -> None:
        if attribute.startswith("_") or jinja2.sandbox.is_internal_attribute(obj, attribute):
            may_read = hasattr(obj, attribute)
        elif isinstance(obj, str):
            may_read = attribute in ("format", "format_map") and _FIELD_OF_A_FIELD.search(obj) is not None
        else:
            may_read = isinstance(obj, datetime.date | datetime.time) and attribute not in _OF_THE_DATE_ITSELF
        if may_read:
            self._notice()


class WatchedSandbox(WatchedEnvironment, jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The same, where a template cannot run Python, nor change what it is given."""
