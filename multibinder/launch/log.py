"""The messages of one instance before it becomes its daemon: lines on stderr, and systemd's status line."""

from __future__ import annotations

import os
from typing import Literal

import sdnotify

from multibinder.kernel.line_writer import write_now

#: The priorities of syslog(3).
_PRIORITIES = {"error": 3, "warning": 4, "notice": 5}

_STDERR = 2


class InstanceLog:
    """Writes the events of a start or reload to stderr, as the daemon itself will.

    It writes to the descriptor: the process is about to execute the daemon, which inherits it.
    """

    def __init__(self, program: str, name: str) -> None:
        self._program = program
        self._name = name

    def write(self, level: Literal["error", "warning", "notice"], text: str) -> None:
        """Write one event. Each line of ``text`` becomes a line of the log. Never raises OSError."""
        try:
            # The journal takes the priority from <N> at the start of each line (sd-daemon(3)). JOURNAL_STREAM tells
            # whether the descriptor is the journal's (systemd.exec(5)).
            status = os.fstat(_STDERR)
            is_journal = os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
            prefix = f"<{_PRIORITIES[level]}>" if is_journal else ""
            lines = [f"{prefix}{self._program}[{self._name}] {level}: {line}\n" for line in text.splitlines()]
            # HAProxy's master must not hang at a reload because nobody reads its stderr.
            write_now(_STDERR, "".join(lines).encode(errors="backslashreplace"))
        except OSError:
            pass  # a log that cannot be written must not keep the daemon from starting

    def set_status(self, text: str) -> None:
        """Set the line that ``systemctl status`` shows, until the daemon sets its own. Does nothing without systemd."""
        sdnotify.SystemdNotifier().notify(f"STATUS={text}")
