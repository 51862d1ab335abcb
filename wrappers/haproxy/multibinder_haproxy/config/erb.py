"""Templates of the Ruby program: ERB, as far as ``<%= bind_tcp('0.0.0.0', 80) %>`` goes. Ruby is not run."""

from __future__ import annotations

import re

from multibinder_haproxy.errors import TemplateFailure

#: The delimiters with which Jinja2 reads an ERB file.
DELIMITERS = {
    "variable_start_string": "<%=",
    "variable_end_string": "%>",
    "comment_start_string": "<%#",
    "comment_end_string": "%>",
    "block_start_string": "<%!",
    "block_end_string": "!%>",
}

_TAG = re.compile(r"<%(?P<kind>[=#%]?)(?P<code>.*?)%>", re.DOTALL)
_BIND = re.compile(r"""\s*bind_tcp\s*\(\s*(['"])[^'"]*\1\s*,\s*\d+\s*\)\s*""")
_ENV = re.compile(r"""\s*ENV\[\s*['"](\w+)['"]\s*\]\s*""")


def is_erb(kind: str, text: str) -> bool:
    """Return whether a template is ERB. ``kind`` is its suffix; the Ruby program uses .mb too."""
    return kind == ".erb" or (kind == ".mb" and "<%" in text)


def refuse_ruby(path: str, text: str) -> None:
    """Raise TemplateFailure for the first tag that is more than bind_tcp() or a comment, with what to write instead."""
    for tag in _TAG.finditer(text):
        code = tag["code"]
        if tag["kind"] == "#" or (tag["kind"] == "=" and _BIND.fullmatch(code)):
            continue
        line = text.count("\n", 0, tag.start()) + 1
        if tag["kind"] == "=" and (variable := _ENV.fullmatch(code)):
            hint = f"write {{{{ env.{variable[1]} }}}}"
        elif tag["kind"] == "=" and "bind_tcp" in code:
            hint = "write bind_tcp('0.0.0.0', 80), with parentheses, a numeric host in quotes and a number"
        elif tag["kind"] == "=":
            hint = f"write {{{{ {code.strip()} }}}} in Jinja2's terms"
        else:
            hint = "write {% if … %}, {% for … %}, {% set … %}"
        raise TemplateFailure(
            f"{path}:{line}: Ruby is not run here: {tag[0]!r}. Only <%= bind_tcp('0.0.0.0', 80) %> works in an ERB "
            f"file; for more, rename the file to .j2 and {hint}"
        )
