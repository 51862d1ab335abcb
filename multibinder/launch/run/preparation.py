"""What a copy becomes: its command and environment with the listeners in them."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from multibinder.launch.run.errors import StartFailed
from multibinder.launch.run.settings import ServiceSettings
from multibinder.launch.style_choice import styles_for
from multibinder.launch.styles import placeholders
from multibinder.launch.styles.draft import Draft, prepare
from multibinder.launch.styles.errors import StyleError
from multibinder.launch.styles.passed import Passed

#: The name of the private listener of a copy.
READY = "ready"
#: The variable with the PID of the copy itself. It tells a copy from the processes that inherit its environment.
OWN_PID = "MULTIBINDER_PID"


def styles_of(settings: ServiceSettings) -> list[str]:
    """Return the styles to use: those that were asked for, else none if {NAME} is used, else that of the program."""
    names = [bind.name for bind in settings.binds]
    return styles_for(settings.styles, settings.command, settings.environment, names)


def draft_of(
    settings: ServiceSettings, environment: Mapping[str, str], sockets: Sequence[Passed], private: socket.socket | None
) -> Draft:
    """Raises StartFailed."""
    hidden = []
    if private is not None:
        host, port = private.getsockname()[:2]
        hidden = [Passed({"host": host, "port": port}, READY, private.fileno())]
    try:
        made = prepare(settings.command, environment, sockets, styles_of(settings), settings.environment, hidden)
    except StyleError as error:
        raise StartFailed(str(error)) from error
    if not settings.binds:
        for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
            made.environment.pop(name, None)
        made.pid = ()
    made.pid = (*made.pid, OWN_PID, *(["WATCHDOG_PID"] if "WATCHDOG_USEC" in environment else []))
    return made


def private_listener(settings: ServiceSettings) -> socket.socket | None:
    """Return the listener that {ready} names in the command or a variable; None without it. Raises StartFailed."""
    if READY not in placeholders.names_in([*settings.command, *settings.environment.values()]):
        return None
    try:
        return socket.create_server(("127.0.0.1", 0))
    except OSError as error:
        raise StartFailed(f"the private listener {{ready}} cannot be made: {error.strerror}") from error
