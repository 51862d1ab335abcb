"""Calls of bind_tcp() that no rendering would run: HAProxy would get them as they are, and call them an address."""

from __future__ import annotations

import os
import re

from multibinder_haproxy.config.template_files import is_template
from multibinder_haproxy.errors import TemplateFailure

#: The first argument of a bind line, and the tag that it stands in.
_CALL = re.compile(
    r"^[ \t]*(?:dgram-)?bind[ \t]+(?:(\{\{-?|<%=|[({$]+)\s*)?(bind_(?:tcp|mptcp|unix|udp|quic))\b", re.MULTILINE
)
_IN_JINJA, _IN_ERB = "{{ bind_tcp('0.0.0.0', 80) }}", "<%= bind_tcp('0.0.0.0', 80) %>"


def refuse_misplaced_calls(path: str, text: str, *, erb: bool = False) -> None:
    """Raise TemplateFailure for the first call on a bind line that is outside of the tags of this file's language."""
    if "bind_" not in text:
        return
    for call in _CALL.finditer(text):
        tag = (call[1] or "").removesuffix("-")
        if not is_template(path):
            suffix = ".erb" if tag == "<%=" else ".j2"
            why = (
                f"{call[2]}() works in templates only: rename the file to {os.path.basename(path)}{suffix}, and name "
                "it so after -f" + ("" if tag in ("{{", "<%=") else f"; and write {_IN_JINJA}")
            )
        elif erb and tag != "<%=":
            why = f"in an ERB file write {_IN_ERB}; or rename the file to .j2"
        elif not erb and tag != "{{":
            why = f"in a Jinja2 file write {_IN_JINJA}" + ("; or rename the file to .erb" if tag == "<%=" else "")
        else:
            continue
        raise TemplateFailure(f"{path}:{text.count(chr(10), 0, call.start()) + 1}: {why}")
