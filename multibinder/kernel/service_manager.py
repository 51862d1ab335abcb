"""Tell the service manager, systemd or another one that sets $NOTIFY_SOCKET, about this process (sd_notify(3))."""

from __future__ import annotations

import os

import sdnotify

#: No message waits longer than this for a service manager that does not read, in seconds.
_SEND_TIMEOUT_S = 2.0


def notify(*fields: str) -> None:
    """Send one message, such as ``READY=1``. Does nothing without a service manager, and never raises OSError."""
    # SystemdNotifier() would leave an unclosed socket behind.
    if not os.environ.get("NOTIFY_SOCKET"):
        return
    notifier = sdnotify.SystemdNotifier()
    if notifier.socket is not None:
        with notifier.socket:
            notifier.socket.settimeout(_SEND_TIMEOUT_S)
            notifier.notify("\n".join(fields))


def notify_ready(*, is_main: bool | None = None) -> None:
    """Send READY=1, and MAINPID= if this process becomes the main process of the service.

    It becomes that if it was started beside the main process to replace it. ``is_main`` says so; None finds out:
    systemd gives $MAINPID to what ExecReload= starts (systemd.exec(5)), and to no other process that may be a server.
    The main process itself need not say it, and a worker of it must not. The unit needs ``NotifyAccess=all``.
    """
    if is_main is None:
        is_main = os.environ.get("MAINPID", str(os.getpid())) != str(os.getpid())
    notify("READY=1", *([f"MAINPID={os.getpid()}"] if is_main else []))


def notify_stopping() -> None:
    """Send STOPPING=1: the service as a whole ends, by its own decision.

    A process that a signal tells to stop must not send it. If systemd sent the signal, it knows. If not, another copy
    may have become the main process, and systemd would stop that one: it takes STOPPING=1 from every process that
    NotifyAccess= allows, and stops the whole unit (seen on systemd 252, with a copy that was the main process).
    """
    notify("STOPPING=1")
