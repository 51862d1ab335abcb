"""Check the arguments of the public calls, before anything is sent: durations, the path of the control socket."""

from __future__ import annotations

import math
import os

from multibinder.wire.errors import ArgumentError, ConfigurationError
from multibinder.wire.excerpt import excerpt, shown

#: The variable with the path of the control socket, for every client and for ``multibinder serve``.
SOCKET_VARIABLE = "MULTIBINDER_SOCK"
DEFAULT_TIMEOUT_S = 10.0
#: sizeof(sun_path), less the NUL that ends it (unix(7)).
PATH_BYTES = 107
#: Thirty years and more are no limit.
_ENDLESS_S = 1e9


def timeout_s(value: float | None) -> float:
    """Return a timeout in seconds; math.inf for None, which sets no limit. Raises ArgumentError."""
    if value is None:
        return math.inf
    seconds = _seconds("timeout", value)
    if seconds <= 0:
        raise ArgumentError(f"timeout {shown(value)} leaves no time to ask: give seconds above 0, or None for no limit")
    return seconds


def wait_s(value: float) -> float:
    """Return how long to wait for a binder, in seconds; math.inf waits for ever. Raises ArgumentError."""
    return _not_negative("wait", value)


def drain_s(value: float) -> float:
    """Return how long a released listener may drain, in seconds. Raises ArgumentError."""
    seconds = _not_negative("drain", value)
    if math.isinf(seconds):
        raise ArgumentError("drain inf would never close the port: give a number of seconds")
    return seconds


def control_path(path: str | os.PathLike[str] | None) -> str:
    """Return the path of the control socket: ``path``, or else $MULTIBINDER_SOCK. Raises ConfigurationError."""
    try:
        named = os.fsdecode(path or os.environ.get(SOCKET_VARIABLE) or "")
    except TypeError:
        raise ArgumentError(f"socket_path is of type {type(path).__name__}: give the path as a str or a Path") from None
    if not named:
        raise ConfigurationError(
            f"{SOCKET_VARIABLE} is not set: set it to the path of the binder's control socket "
            "(as given to 'multibinder serve --socket'), or pass socket_path="
        )
    if (size := len(os.fsencode(named))) > PATH_BYTES:
        raise ConfigurationError(
            f"the path of the control socket has {size} bytes, that of a Unix socket may have {PATH_BYTES} "
            f"(sun_path, unix(7)): no binder serves {excerpt(named)}; choose a shorter one"
        )
    if "\0" in named:
        raise ConfigurationError(f"the path of the control socket has a NUL in it: {excerpt(repr(named))}")
    return named


def _not_negative(name: str, value: float) -> float:
    seconds = _seconds(name, value)
    if seconds < 0:
        raise ArgumentError(f"{name} {shown(value)} is negative: give a number of seconds from 0")
    return seconds


def _seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentError(f"{name} {shown(value)} is of type {type(value).__name__}: give a number of seconds")
    if value != value:  # math.isnan() refuses an int of more than 308 digits
        raise ArgumentError(f"{name} is not a number (NaN): give a number of seconds")
    # A number of hundreds of digits is no float.
    return math.inf if value >= _ENDLESS_S else float(max(value, -1))
