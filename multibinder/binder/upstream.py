"""The guard's own supervisor, which gets the notifications of the binder (sd_notify(3))."""

from __future__ import annotations

import os
import socket

from multibinder.binder.loop import Loop

#: What the supervisor could not take is sent again after this time (unix(7), max_dgram_qlen).
_AGAIN_S = 0.1
#: A message that has waited is dropped when this many newer ones wait.
_WAITING_MAX = 16
#: Set for the next guard by an upgrade: messages that wait, each with ``_END`` behind it but the last. An environment
#: string has at most 128 KiB (MAX_ARG_STRLEN, execve(2)).
_UNSENT, _END, _UNSENT_CHARACTERS = "MULTIBINDER_UNSENT", "\n\n", 1024


class Upstream:
    """Pass messages on to the supervisor that $NOTIFY_SOCKET names, if there is one. No call waits for it.

    READY=1 and STOPPING=1 wait until the supervisor has room for them. Other messages are lost then: a newer one comes.
    What still waits at an upgrade of the guard is sent by the next one.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = f"\0{self._address[1:]}"
        self._waiting: list[str] = list(filter(None, os.environ.pop(_UNSENT, "").split(_END)))
        self._socket: socket.socket | None = None
        if self._waiting:
            loop.call_later(0, self._send_waiting)

    def send(self, fields: dict[str, str], message: str) -> None:
        """Send a message of the binder, whose fields are ``fields``."""
        if not self._address:
            return
        is_important = fields.keys() & {"READY", "STOPPING"}
        # Messages must not overtake each other.
        if (self._waiting and is_important) or (not self._waiting and not self._try(message) and is_important):
            if not self._waiting:
                self._loop.call_later(_AGAIN_S, self._send_waiting)
            self._waiting = [*self._waiting[-_WAITING_MAX + 1 :], message]

    def close(self) -> None:
        self._disconnect()
        if self._waiting:
            texts = (message.replace("\0", "").strip("\n") for message in self._waiting)
            os.environ[_UNSENT] = _END.join(text[:_UNSENT_CHARACTERS] for text in texts)

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send_waiting(self) -> None:
        while self._waiting and self._try(self._waiting[0]):
            del self._waiting[0]
        if self._waiting:
            self._loop.call_later(_AGAIN_S, self._send_waiting)

    def _try(self, message: str) -> bool:
        """Send, and return False if that must be tried again. A supervisor that is gone is no reason for that."""
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                self._socket.connect(self._address)
            self._socket.send(message.encode())
        except (ConnectionError, FileNotFoundError):
            self._disconnect()
        except OSError:  # its queue is full, or this process is short of something
            return False
        return True
