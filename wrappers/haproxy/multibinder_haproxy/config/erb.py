"""Templates of the Ruby program: ERB, as far as ``<%= bind_tcp('0.0.0.0', 80, shards: 4) %>`` goes. Ruby is not run."""

from __future__ import annotations

import re

from multibinder import AddressError
from multibinder_haproxy.config.literal import (
    FUNCTION,
    NUMBER,
    TEXT,
    VALUE,
    Functions,
    arguments_of,
    with_newlines,
)
from multibinder_haproxy.errors import TemplateFailure

#: ``<%%`` is how ERB writes ``<%`` itself.
_TAG = re.compile(r"<%(?P<literal>%)|<%(?P<kind>[=#]?)(?P<code>.*?)%>", re.DOTALL)
_OPTIONS = rf"(?:\s*,\s*[a-z0-9_]+:\s*{VALUE})*"
_ARGUMENTS = rf"{TEXT}\s*,\s*(?:{TEXT}|{NUMBER}){_OPTIONS}"
_PATH = rf"{TEXT}{_OPTIONS}"
_BIND = re.compile(
    rf"\s*(?:(?!bind_unix){FUNCTION}(?:\s*\(\s*{_ARGUMENTS}\s*\)|\s+{_ARGUMENTS})"
    rf"|bind_unix(?:\s*\(\s*{_PATH}\s*\)|\s+{_PATH}))\s*"
)
_ENV = re.compile(r"""\s*ENV\[\s*['"](\w+)['"]\s*\]\s*""")


def is_erb(kind: str, text: str) -> bool:
    """Return whether a template is ERB. ``kind`` is its suffix; the Ruby program uses .mb too."""
    return kind == ".erb" or (kind == ".mb" and "<%" in text)


def render(path: str, text: str, functions: Functions) -> str:
    """Return the text of an ERB template. Raises TemplateFailure for any Ruby but a call with literal arguments."""
    text = with_newlines(text, "\n")
    rendered, position = [], 0
    for tag in _TAG.finditer(text):
        rendered.append(text[position : tag.start()])
        position = tag.end()
        if tag["literal"]:
            rendered.append("<%")
        elif tag["kind"] == "=":
            rendered.append(_value(path, text, tag, functions))
        elif tag["kind"] != "#":
            raise _refusal(path, text, tag)
    return "".join([*rendered, text[position:]])


def _value(path: str, text: str, tag: re.Match[str], functions: Functions) -> str:
    code = tag["code"]
    call = arguments_of(code) if _BIND.fullmatch(code) and "#{" not in code else None
    if call is None:
        raise _refusal(path, text, tag)
    try:
        name, arguments, options = call
        return functions[name](*arguments, **options)
    except AddressError as error:
        raise TemplateFailure(f"{path}:{_line(text, tag)}: {error}") from error


def _refusal(path: str, text: str, tag: re.Match[str]) -> TemplateFailure:
    """Return the error for a tag that Ruby would have to run, with what to write instead."""
    code = tag["code"]
    if tag["kind"] == "=" and (variable := _ENV.fullmatch(code)):
        hint = f"write {{{{ env.{variable[1]} }}}}"
    elif tag["kind"] == "=" and "bind_tcp" in code:
        hint = "write {{ bind_tcp('0.0.0.0', 80) }}: a numeric host in quotes, and a number"
    elif tag["kind"] == "=":
        hint = f"write {{{{ {code.strip()} }}}} in Jinja2's terms"
    else:
        hint = "write {% if … %}, {% for … %}, {% set … %}"
    return TemplateFailure(
        f"{path}:{_line(text, tag)}: Ruby is not run here: {tag[0]!r}. Only <%= bind_tcp('0.0.0.0', 80) %> works in an "
        f"ERB file; for more, rename the file to .j2 and {hint}"
    )


def _line(text: str, tag: re.Match[str]) -> int:
    return text.count("\n", 0, tag.start()) + 1
