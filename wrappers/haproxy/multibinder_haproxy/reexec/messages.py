"""The messages of a re-exec: lines on stderr, as HAProxy's own, and systemd's status line."""

import contextlib
import os
import select
import socket

_PRIORITIES = {"error": 3, "warning": 4, "notice": 5}  # syslog(3)
#: A pipe or terminal that poll(2) reports as writable takes this much (pipe(7)).
_CHUNK = 4096


def write(name: str, level: str, text: str) -> None:
    """Write one event of the instance, a line for each line of ``text``. It never blocks, and never raises OSError."""
    with contextlib.suppress(OSError):
        # The journal takes the priority from <N> (sd-daemon(3)); JOURNAL_STREAM says whether stderr is the journal's.
        status = os.fstat(2)
        is_journal = os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
        prefix = f"<{_PRIORITIES[level]}>" if is_journal else ""
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        for line in text.splitlines():
            # HAProxy's master must not hang at a reload because no process reads its stderr.
            if any(events & select.POLLOUT for _, events in poll.poll(0)):
                whole = f"{prefix}multibinder-haproxy[{name}] {level}: {line}\n"
                os.write(2, whole.encode(errors="backslashreplace")[:_CHUNK])


def set_status(text: str) -> None:
    """Set the line that ``systemctl status`` shows (sd_notify(3)). Does nothing without systemd."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] not in ("/", "@"):
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(f"STATUS={text}".encode(errors="replace"), address)
