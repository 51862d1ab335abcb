"""Warnings about bind lines that HAProxy does not apply as they are written."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: The options that HAProxy ignores on an inherited socket (measured on 2.6 to 3.2), and what to write instead.
_IGNORED_ON_INHERITED = {
    "backlog": "write bind_tcp(…, backlog=N)",
    "v6only": "write bind_tcp(…, v6only=true)",
    "v4v6": "write bind_tcp(…, v6only=false)",
    "interface": "bind this one without bind_tcp",
    "namespace": "bind this one without bind_tcp",
    "transparent": "bind this one without bind_tcp",
}
_BIND_LINE = re.compile(r"\s*bind\s+(\S*fd@\{.*)")


def lint(files: Mapping[str, str]) -> list[str]:
    """Return a warning for each option that HAProxy ignores on our binds. ``files`` has texts by target name."""
    found = []
    for target, text in files.items():
        for number, line in enumerate(text.splitlines(), 1):
            bind = _BIND_LINE.match(line.partition("#")[0])
            for word in bind[1].split()[1:] if bind else ():
                if remedy := _IGNORED_ON_INHERITED.get(word):
                    what = f"HAProxy ignores '{word}' on a socket that it inherits: {line.strip()}"
                    found.append(f"{target}:{number}: {what}; {remedy}")
    return found
