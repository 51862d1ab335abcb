"""The checks of readiness by the settings that choose them."""

from __future__ import annotations

import re

from multibinder.launch.errors import UsageError
from multibinder.launch.run.readiness.check import Check
from multibinder.launch.run.readiness.http import Http
from multibinder.launch.run.readiness.serving import Serving
from multibinder.launch.run.readiness.tcp import Tcp
from multibinder.launch.run.readiness.told import Acknowledged, After, Line, Notified
from multibinder.launch.run.settings import Readiness


def check_of(readiness: Readiness) -> Check:
    """Return the check that the settings choose. Raises UsageError for one that cannot be."""
    if readiness.http is not None:
        return Http(readiness.http)
    if readiness.tcp is not None:
        return Tcp(readiness.tcp)
    if readiness.line is not None:
        try:
            re.compile(readiness.line.encode())
        except re.error as error:
            raise UsageError(f"ready-line is {readiness.line!r}: that is no regular expression: {error}") from None
        return Line(readiness.line)
    if readiness.after_s is not None:
        return After(readiness.after_s)
    if readiness.einhorn:
        return Acknowledged()
    if readiness.notify:
        return Notified()
    return Serving()
