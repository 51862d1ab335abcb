"""What ``run`` tells the commands ``reload``, ``stop``, ``instances``: the messages of its control socket.

The socket is in the directory of the instance. A client sends one ``Request`` as a line of JSON. ``run``
answers with any number of ``Progress`` lines and one ``Answer``, and closes the connection.
"""

from __future__ import annotations

from typing import Literal

import msgspec

#: The name of the socket in the directory of the instance.
CONTROL_SOCKET = "control.sock"

Command = Literal["reload", "continue", "abort", "stop", "status"]


class Request(msgspec.Struct, frozen=True):
    """A command. ``keep_listeners`` belongs to ``stop``."""

    command: Command
    keep_listeners: bool = False


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """A sentence about what happens now, for a person who waits."""

    text: str


class ReloadReport(msgspec.Struct, frozen=True):
    """How a reload ended.

    ``ok`` is False if the old copies serve on; ``message`` says why then, and ``output`` has the last lines of the copy
    that failed. ``old`` and ``new`` are the PIDs before and after. ``is_canary`` is True if it waits for ``continue``.
    ``took_s`` is in seconds. ``added``, ``kept`` and ``dropped`` are addresses.
    """

    ok: bool
    message: str
    generation: int
    took_s: float
    old: list[int] = []
    new: list[int] = []
    output: list[str] = []
    warnings: list[str] = []
    added: list[str] = []
    kept: list[str] = []
    dropped: list[str] = []
    is_canary: bool = False


class CopyStatus(msgspec.Struct, frozen=True):
    """One copy. ``state`` is starting, ready or stopping. ``since`` is its start, in seconds since the epoch."""

    pid: int
    generation: int
    index: int
    state: str
    since: float
    ready_by: str = ""


class RunStatus(msgspec.Struct, frozen=True):
    """The present state of an instance of ``run``.

    ``state`` is starting, running, reloading, canary, waiting (for the next try after a crash), stopping.
    ``wanted`` copies should run. ``gave_up`` is True while the ports of a command that cannot be started are closed.
    """

    name: str
    pid: int
    state: str
    generation: int
    command: list[str]
    copies: list[CopyStatus]
    binds: list[str]
    restarts_total: int = 0
    reloads_total: int = 0
    failures_total: int = 0
    last_failure: str = ""
    wanted: int = 1
    gave_up: bool = False
    problems: list[str] = []


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """The end of a command: ``report`` of a reload, ``status``, ``closed`` addresses of a stop; else ``error``."""

    report: ReloadReport | None = None
    status: RunStatus | None = None
    closed: list[str] = []
    error: str = ""
