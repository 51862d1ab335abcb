"""What ``run`` and HAProxy's own reloads have to say: lines on stderr, and systemd's status line."""

from __future__ import annotations

import os
import sys

import sdnotify

_PRIORITIES = {"error": 3, "warning": 4, "notice": 5}


def say(level: str, name: str, text: str) -> None:
    """One event for the log; ``level`` is error, warning or notice. Multi-line texts keep their lines."""
    try:
        status = os.fstat(2)
        # sd-daemon(3) and systemd.exec(5): the journal takes the priority from <N> at the start of each line.
        journal = os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
        prefix = f"<{_PRIORITIES[level]}>" if journal else ""
        for line in text.splitlines():
            sys.stderr.write(f"{prefix}multibinder-haproxy[{name}] {level}: {line}\n")
        sys.stderr.flush()
    except OSError:
        pass  # nobody reads it; HAProxy must start all the same


def set_status(text: str) -> None:
    """The line that 'systemctl status' shows, until HAProxy sets its own. Does nothing without systemd."""
    sdnotify.SystemdNotifier().notify(f"STATUS={text}")
