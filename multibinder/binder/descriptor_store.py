"""The guard's descriptor store: the other end of ``keeper.Keeper``, with systemd's protocol (sd_notify(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable

from multibinder.binder import events
from multibinder.wire import transport
from multibinder.wire.errors import RemoteProtocolError

#: The name of the store's own socket on its way to the next guard.
_NOTIFY = "notify"


class DescriptorStore:
    """Store descriptors by their names, as messages to ``sock`` ask for. It owns all of them, and ``sock``."""

    def __init__(self, sock: socket.socket, descriptors: dict[str, int]) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._descriptors = descriptors

    def __len__(self) -> int:
        return len(self._descriptors)

    @property
    def address(self) -> str:
        """Return the value of $NOTIFY_SOCKET that names this store."""
        name: bytes = self._socket.getsockname()
        return "@" + name[1:].decode()

    def fileno(self) -> int:
        return self._socket.fileno()

    def descriptors(self) -> list[tuple[str, int]]:
        """Return the names and descriptors, which stay the store's."""
        return list(self._descriptors.items())

    def detach_all(self) -> list[tuple[str, int]]:
        """Give the descriptors, and that of the store's socket, to the caller, for ``restored_store``."""
        descriptors = [(_NOTIFY, self._socket.detach()), *self._descriptors.items()]
        self._descriptors.clear()
        return descriptors

    def receive(self, pass_on: Callable[[dict[str, str], str], None]) -> None:
        """Process all messages that have arrived: store, forget, confirm.

        ``pass_on`` gets the fields and the text of each message that is not for the store.
        """
        while True:
            try:
                message, descriptors, uid = transport.receive_from(self._socket)
            except BlockingIOError:
                return
            except (OSError, RemoteProtocolError) as error:
                events.error("guard-cannot-receive", why=error)
                return
            if uid == os.geteuid():
                self._process(message.decode(errors="replace"), descriptors, pass_on)
            else:
                # Every user can send to an abstract address. Another user could remove our sockets from the store.
                events.warning("guard-refused", uid=uid, why="a message to the guard from another user")
            # A barrier is confirmed by closing its descriptor: all messages before it have been processed.
            transport.close_all(descriptors)

    def _process(self, message: str, descriptors: list[int], pass_on: Callable[[dict[str, str], str], None]) -> None:
        """Obey one message. A descriptor that the store keeps is taken out of ``descriptors``."""
        fields = dict(line.partition("=")[::2] for line in message.splitlines())
        name = fields.get("FDNAME", "")
        if fields.get("FDSTORE") == "1" and len(descriptors) == 1:
            self._forget(name)
            self._descriptors[name] = descriptors.pop()
        elif fields.get("FDSTOREREMOVE") == "1" and name in self._descriptors:
            self._forget(name)
        elif "BARRIER" not in fields and "FDSTORE" not in fields:
            pass_on(fields, message)

    def _forget(self, name: str) -> None:
        if name in self._descriptors:
            os.close(self._descriptors.pop(name))


def restored_store(passed: Iterable[tuple[str, int]]) -> DescriptorStore:
    """Return a store of the descriptors that were passed to this process, by a guard before or by a socket unit."""
    descriptors: dict[str, int] = {}
    for name, descriptor in passed:
        # A socket unit gives all its sockets the same name.
        descriptors[name if name not in descriptors else f"{name}-{descriptor}"] = descriptor
    if _NOTIFY in descriptors:
        return DescriptorStore(socket.socket(fileno=descriptors.pop(_NOTIFY)), descriptors)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    sock.bind("")  # an abstract address that the kernel chooses (autobind, unix(7))
    return DescriptorStore(sock, descriptors)
