"""The variables of templates: --vars files in TOML or JSON."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from typing import Any

from multibinder_haproxy.config.sources import NotRegularFile, SourceRecorder
from multibinder_haproxy.errors import TemplateFailure

#: The names that are defined in every template.
RESERVED = frozenset(["bind_tcp", "bind_mptcp", "bind_unix", "bind_udp", "bind_quic", "env", "name"])


#: What a shell puts in the place of ``<(command)``, and standard input.
_OWN_DESCRIPTOR = re.compile(r"/dev/(fd/\d+|stdin)|/proc/self/fd/\d+")


def read_variables(paths: Sequence[str], recorder: SourceRecorder | None = None) -> dict[str, Any]:
    """Read --vars files; a later one overrides an earlier one. Raises TemplateFailure."""
    recorder = recorder or SourceRecorder()
    variables: dict[str, Any] = {}
    for path in paths:
        text = _read(path, recorder)
        try:
            content = tomllib.loads(text.decode()) if path.endswith(".toml") else json.loads(text)
        except (ValueError, RecursionError) as error:
            kind = "TOML" if path.endswith(".toml") else "JSON"
            raise TemplateFailure(f"{path}: not valid {kind}: {error}") from error
        if not isinstance(content, dict):
            raise TemplateFailure(f"{path}: the variables must be an object at the top, not a {type(content).__name__}")
        variables |= content
    if reserved := RESERVED & variables.keys():
        raise TemplateFailure(f"{', '.join(paths)}: {', '.join(sorted(reserved))} is the wrapper's own; rename it")
    return variables


def _read(path: str, recorder: SourceRecorder) -> bytes:
    """Read a file, or a pipe that this process was given. Another user's FIFO is refused: it could wait for ever."""
    try:
        try:
            return recorder.read_file(path)
        except NotRegularFile:
            if not _OWN_DESCRIPTOR.fullmatch(path):
                raise
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise TemplateFailure(f"{path}: cannot read the variables: {error.strerror}") from error
