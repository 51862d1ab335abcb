"""Templates in which each tag is a call of bind_tcp() or its like with literal arguments. They do not need Jinja2.

The text is the one that Jinja2 would give. Its compiler takes most of the time of a start with a thousand calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from multibinder import AddressError
from multibinder_haproxy.errors import TemplateFailure

#: A text without escapes, and a number as Jinja2 and Ruby write it.
TEXT = r"""(?:'[^'\\\r\n]*'|"[^"\\\r\n]*")"""
NUMBER = r"(?:0|[1-9][0-9]*)"

VALUE = rf"(?:{TEXT}|{NUMBER}|true\b|false\b|none\b)"
#: The functions, as in ``config.bind_calls``.
FUNCTION = r"bind_(?:tcp|mptcp|unix|udp|quic)"
_OPTION = rf"[a-z0-9_]+\s*=\s*{VALUE}"
_TAG = re.compile(
    rf"\{{\{{(\s*{FUNCTION}\s*\(\s*{TEXT}(?:\s*,\s*(?:{TEXT}|{NUMBER}))?(?:\s*,\s*{_OPTION})*\s*\)\s*)\}}\}}"
)
#: Ruby has a colon after the name of an option.
_ARGUMENT = re.compile(rf"(?:([a-z0-9_]+)\s*[=:]\s*)?({VALUE})")
_NAME = re.compile(FUNCTION)
_CONSTANTS = {"true": True, "false": False, "none": None}
_NEWLINE = re.compile(r"\r\n?|\n")

#: The functions by their names.
Functions = Mapping[str, Callable[..., str]]


def render_if_literal(path: str, text: str, functions: Functions) -> str | None:
    """Return the text of a Jinja2 template that has only literal calls; None for any other. Raises TemplateFailure."""
    if "{%" in text or "{#" in text:
        return None
    pieces = _TAG.split(with_newlines(text, newline_of(text)))
    texts, calls = pieces[::2], [arguments_of(call) for call in pieces[1::2]]
    if None in calls or any("{{" in each for each in texts) or any(each.endswith("{") for each in texts[:-1]):
        return None
    rendered = [texts[0]]
    for index, call in enumerate(calls):
        try:
            name, arguments, options = call or ("", (), {})
            rendered += functions[name](*arguments, **options), texts[index + 1]
        except AddressError as error:
            line = 1 + "".join(pieces[: 2 * index + 1]).count("\n")
            raise TemplateFailure(f"{path}:{line}: {error}") from error
    return "".join(rendered)


def arguments_of(call: str) -> tuple[str, list[Any], dict[str, Any]] | None:
    """Return the function, the positional and the named arguments of a call with literal ones.

    Return None if a name comes twice.
    """
    function = _NAME.search(call)
    assert function is not None  # noqa: S101 (the patterns of the callers have one)
    arguments: list[Any] = []
    options: dict[str, Any] = {}
    for name, literal in _ARGUMENT.findall(call, function.end()):
        if name in options:
            return None
        if literal[0] in "'\"":
            value: Any = literal[1:-1]
        else:
            value = _CONSTANTS[literal] if literal in _CONSTANTS else int(literal)
        if name:
            options[name] = value
        else:
            arguments.append(value)
    return function[0], arguments, options


def newline_of(text: str) -> Literal["\n", "\r\n"]:
    """Return the newline that a template's text gets: that of its lines if all end with CR LF, else LF."""
    return "\r\n" if "\r\n" in text and text.count("\r\n") == text.count("\n") == text.count("\r") else "\n"


def with_newlines(text: str, newline: str) -> str:
    """Return the text with newlines of one sort, as Jinja2 writes them."""
    return _NEWLINE.sub(lambda found: newline, text)
