"""The variables of templates: --vars files in TOML or JSON."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from typing import Any

from multibinder_haproxy.errors import TemplateFailure

#: The names that are defined in every template.
RESERVED = frozenset(["bind_tcp", "env", "name"])


def read_variables(paths: Sequence[str]) -> dict[str, Any]:
    """Read --vars files; a later one overrides an earlier one. Raises TemplateFailure."""
    variables: dict[str, Any] = {}
    for path in paths:
        try:
            with open(path, "rb") as file:
                content = tomllib.load(file) if path.endswith(".toml") else json.load(file)
        except OSError as error:
            raise TemplateFailure(f"{path}: cannot read the variables: {error.strerror}") from error
        except ValueError as error:
            kind = "TOML" if path.endswith(".toml") else "JSON"
            raise TemplateFailure(f"{path}: not valid {kind}: {error}") from error
        if not isinstance(content, dict):
            raise TemplateFailure(f"{path}: the variables must be an object at the top, not a {type(content).__name__}")
        variables |= content
    if reserved := RESERVED & variables.keys():
        raise TemplateFailure(f"{', '.join(paths)}: {', '.join(sorted(reserved))} is the wrapper's own; rename it")
    return variables
