"""Sentences about mistakes in Jinja2 templates, with the line of the mistake and what to write instead."""

from __future__ import annotations

import re

import jinja2
import jinja2.nodes

_OPENING = re.compile(r"\{[{%#]")
_CLOSING = {"{{": "}}", "{%": "%}", "{#": "#}"}
_WHAT_BEGINS = {"{{": "an expression", "{%": "a tag", "{#": "a comment"}
_TAG = re.compile(r"\{%[-+]?\s*(\w+)")
_TAG_IN_A_LINE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}")
_STRING = re.compile(r"""'[^']*'|"[^"]*\"""")
#: bind_tcp(0.0.0.0, 80), bind_tcp(*:80), bind_tcp([::], 80): an address, or what may be one, outside of quotes.
_WITHOUT_QUOTES = re.compile(
    r"""bind_tcp\s*\(\s*(?!['"])([0-9a-fA-F.:*\[\]]*[.:*\[][0-9a-fA-F.:*\[\]]*)\s*(?:,\s*([\w-]+)\s*)?[),]?"""
)
#: Messages of Jinja2 about its own tags, filters and tests, which say all that there is to say.
_PLAIN = re.compile(r"No (filter|test) named|Unexpected end of template|unknown tag '(end\w+|else|elif)'")
_INNERMOST = re.compile(r"The innermost block that needs to be closed is '(\w+)'")


def syntax_error(error: jinja2.TemplateSyntaxError, text: str) -> tuple[int, str]:
    """Return the line of a syntax error in the text of its template, and a sentence."""
    message, line = str(error.message), error.lineno
    if message.startswith("Unexpected end of template") and (innermost := _INNERMOST.search(message)):
        return _line_of_unclosed(innermost[1], text) or line, message
    if missing := _line_with_an_open_quote(text, line):
        return missing, _with_hint(text, missing, "a quote is missing")
    opening, opening_line = _last_opening(text, line)
    if opening and _CLOSING[opening[0]] not in _up_to_the_next_opening(text, opening):
        line = opening_line
    return line, _with_hint(text, line, message)


def undefined_name(text: str, line: int, message: str) -> str:
    """Return a sentence about an undefined name in a line, from Jinja2's message."""
    written = _line(text, line)
    if bare := _WITHOUT_QUOTES.search(written):
        return _quote(bare)
    return message + _raw(written) if written.lstrip().startswith("#") else message


def line_of_repeated_option(template: jinja2.nodes.Template) -> int | None:
    """Return the line of the first call that has an option twice; None if there is none."""
    for call in template.find_all(jinja2.nodes.Call):
        names = [option.key for option in call.kwargs]
        if len({*names}) < len(names):
            return call.lineno
    return None


def _with_hint(text: str, line: int, message: str) -> str:
    """Return a message about a line with what to write instead, if that is known."""
    written = _line(text, line)
    if bare := _WITHOUT_QUOTES.search(written):
        return _quote(bare)
    if "bind_tcp" in written:
        return f"{message}; write {{{{ bind_tcp('0.0.0.0', 80) }}}}"
    return message if _PLAIN.search(message) else message.removesuffix(".") + _raw(written)


def _line(text: str, line: int) -> str:
    lines = text.split("\n")
    return lines[line - 1] if 0 < line <= len(lines) else ""


def _quote(bare: re.Match[str]) -> str:
    call = f"bind_tcp('{bare[1]}', {bare[2]})" if bare[2] else f"bind_tcp('{bare[1]}')"
    return f"an address stands in quotes: write {call}"


def _raw(written: str) -> str:
    opening = _OPENING.search(written)
    if opening is None:
        return ""
    return (
        f"; '{opening[0]}' begins {_WHAT_BEGINS[opening[0]]} of Jinja2: put text of HAProxy's own between "
        "{% raw %} and {% endraw %}"
    )


def _last_opening(text: str, line: int) -> tuple[re.Match[str] | None, int]:
    """Return the last delimiter that opens something in the lines up to ``line``, and its own line."""
    end = sum(len(each) + 1 for each in text.split("\n")[:line])
    openings = list(_OPENING.finditer(text, 0, end))
    if not openings:
        return None, line
    return openings[-1], text.count("\n", 0, openings[-1].start()) + 1


def _line_with_an_open_quote(text: str, last: int) -> int | None:
    """Return the first line up to ``last`` with a tag in which a text has no end; Jinja2 reads on to the next quote."""
    for number, written in enumerate(text.split("\n")[:last], 1):
        if any(re.search("['\"]", _STRING.sub("", tag)) for tag in _TAG_IN_A_LINE.findall(written)):
            return number
    return None


def _up_to_the_next_opening(text: str, opening: re.Match[str]) -> str:
    following = _OPENING.search(text, opening.end())
    return text[opening.end() : following.start() if following else len(text)]


def _line_of_unclosed(tag: str, text: str) -> int | None:
    """Return the line of the innermost tag of a kind that has no end; None if there is none."""
    open_lines = []
    for found in _TAG.finditer(text):
        if found[1] == tag:
            open_lines.append(text.count("\n", 0, found.start()) + 1)
        elif found[1] == f"end{tag}" and open_lines:
            open_lines.pop()
    return open_lines[-1] if open_lines else None
