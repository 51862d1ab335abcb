"""The calls of bind_tcp() and its like that give listeners which taking over a plain bind has found."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from multibinder.wire.spread import Shards
from multibinder_haproxy.config.address_parts import Part
from multibinder_haproxy.config.bind_calls import BindCalls
from multibinder_haproxy.config.inputs import InputRecorder
from multibinder_haproxy.config.jinja import JinjaTemplates
from multibinder_haproxy.config.literal import render_if_literal
from multibinder_haproxy.config.model import Slot
from multibinder_haproxy.config.sources import SourceRecorder
from multibinder_haproxy.config.taken import Element
from multibinder_haproxy.errors import TemplateFailure

_FUNCTIONS = {"mptcp": "bind_mptcp", "udp": "bind_udp", "quic4": "bind_quic", "quic6": "bind_quic"}
_OF_FILE = frozenset(["unix", "uxdg", "abns", "abnsz"])
_PREFIX = re.compile(r"([a-z0-9]+)@")
_UPPER_CASE = re.compile(r"[A-Z_][A-Z0-9_]*")
_PATH = "trial.cfg.j2"


def call_of(element: Element, shards: Shards | None) -> str | None:
    """Return the tags that give an element of a bind's list; None if no call does."""
    # One address after the other, if those of a range have different numbers of shards.
    each = [list(slots) for _, slots in itertools.groupby(element.slots, key=_address)]
    for groups in ([list(element.slots)], each):
        tags = ",".join(_tag(slots, shards) for slots in groups)
        if _gives(tags, element, {}):
            return tags
    return None


def call_with_variables(
    element: Element, shards: Shards | None, parts: Sequence[Part], environment: Mapping[str, str]
) -> str | None:
    """Return the tag that gives an element of a bind's list in this environment; None if no call does.

    ``parts`` are those of the element. The call has the variables, so that it follows them.
    """
    function, _ = _function(str(element.slots[0].address))
    if function == "bind_unix" and parts[0].text.startswith("unix@"):
        parts = [Part(parts[0].text.removeprefix("unix@")), *parts[1:]]
    text = " ~ ".join(_value(part, environment) for part in parts if part != Part())
    tag = f"{{{{ {function}({', '.join([text, *_options(element.slots, shards)])}) }}}}"
    return tag if _gives(tag, element, environment) else None


def _value(part: Part, environment: Mapping[str, str]) -> str:
    if not part.name:
        return _literal(part.text)
    if part.default or part.name not in environment:
        return f"env.get({_literal(part.name)}, {_literal(part.default or '')})"
    # A name that is a method of a dict, too, would be that.
    return f"env.{part.name}" if _UPPER_CASE.fullmatch(part.name) else f"env[{_literal(part.name)}]"


def _tag(slots: Sequence[Slot], shards: Shards | None) -> str:
    function, address = _function(str(slots[0].address))
    arguments = [_literal(address)]
    if function != "bind_unix":
        host, _, first = address.rpartition(":")
        last = str(slots[-1].address).rpartition(":")[2]
        arguments = [_literal(host.strip("[]")), first if first == last else _literal(f"{first}-{last}")]
    return f"{{{{ {function}({', '.join([*arguments, *_options(slots, shards)])}) }}}}"


def _function(address: str) -> tuple[str, str]:
    """Return the function for an address, and what it is called with."""
    prefix = _PREFIX.match(address)
    if prefix is None:
        return "bind_tcp", address
    rest = address[prefix.end() :]
    if prefix[1] in _OF_FILE:
        return "bind_unix", rest if prefix[1] == "unix" else address
    return _FUNCTIONS.get(prefix[1], "bind_tcp"), rest


def _options(slots: Sequence[Slot], shards: Shards | None) -> list[str]:
    slot = slots[0]
    of_one = sum(1 for each in slots if _address(each) == _address(slot))
    given: dict[str, Any] = {}
    if of_one > 1 or shards is not None:
        given["shards"] = shards if isinstance(shards, str) else of_one
    if slot.shard:
        given["shard"] = slot.shard
    if slot.netns:
        given["netns"] = slot.netns
    given |= slot.options
    if "mode" in given:
        given["mode"] = f"{given['mode']:03o}"
    return [f"{name}={_literal(value)}" for name, value in given.items()]


def _address(slot: Slot) -> tuple[str, str]:
    return str(slot.address), slot.netns


def _literal(value: Any) -> str:
    """Return a value as Jinja2 reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value)


def _gives(tags: str, element: Element, environment: Mapping[str, str]) -> bool:
    """Return whether tags give the text and the slots of an element."""
    binds = BindCalls()
    try:
        text = render_if_literal(_PATH, tags, binds.functions)
        if text is None:
            inputs = InputRecorder(environment)
            variables = {"env": inputs.env}
            jinja = JinjaTemplates(SourceRecorder(), inputs, binds, variables, sandbox=True, compiled=None)
            text = jinja.render(_PATH, tags)
    except TemplateFailure:
        return False
    return text == element.text and binds.slots == list(element.slots)
