"""A descriptor store with systemd's protocol, in a thread: what it has survives the binder."""

from __future__ import annotations

import array
import os
import socket
import stat
import threading
from pathlib import Path

_WAKE_S = 0.2


class Store:
    """Keeps descriptors that are sent to ``path`` (sd_notify(3)) until ``close``."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(_WAKE_S)
        self.states: list[str] = []
        self._kept: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="descriptor store")
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        return "READY=1" in self.states

    def addresses(self) -> set[tuple[str, int]]:
        """Return the addresses of the kept TCP sockets that listen."""
        found = set()
        for descriptor in list(self._kept.values()):
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue  # the journal
            sock = socket.socket(fileno=os.dup(descriptor))
            with sock:
                if sock.family == socket.AF_INET and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    found.add(sock.getsockname())
        return found

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self.socket.close()
        for descriptor in self._kept.values():
            os.close(descriptor)

    def _serve(self) -> None:
        while not self._ended.is_set():
            try:
                message, ancillary, _, _ = self.socket.recvmsg(8192, socket.CMSG_SPACE(4 * 16))
            except TimeoutError:
                continue
            descriptors = array.array("i")
            for _, _, content in ancillary:
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
            lines = message.decode().splitlines()
            fields = dict(line.partition("=")[::2] for line in lines)
            name = fields.get("FDNAME", "")
            if fields.get("FDSTORE") == "1" and len(descriptors) == 1:
                self._forget(name)
                self._kept[name] = descriptors.pop()
            elif fields.get("FDSTOREREMOVE") == "1":
                self._forget(name)
            else:
                self.states += lines
            for descriptor in descriptors:
                os.close(descriptor)

    def _forget(self, name: str) -> None:
        if name in self._kept:
            os.close(self._kept.pop(name))
