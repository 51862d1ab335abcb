"""The socket on which copies tell their state (sd_notify(3)). Each message is that of the copy whose process sent it.

Everybody can write to it: a copy may run as another user. So a message counts only if the kernel says that a process of
a copy has sent it, and no sender can keep ``run`` from its work.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Mapping

from multibinder.kernel.process import leader_of
from multibinder.launch.run.notices import Notices
from multibinder.launch.run.tasks import readable, sleep

#: systemd's limit of a message (NOTIFY_BUFFER_MAX). A longer one is ignored.
_MESSAGE_SIZE = 4096
#: SCM_MAX_FD (include/net/scm.h).
_MOST_DESCRIPTORS = 253
_CREDENTIALS = struct.Struct("=iII")
#: So many messages are read before others have their turn.
_MESSAGES_IN_A_TURN = 32
#: The pause after them. A sender of more waits in sendmsg(2) then, instead of this process using the whole CPU.
_PAUSE_S = 0.01


class NotifyServer:
    """The socket at ``path``. ``copies`` returns the notices of each copy, by the PID of its first process.

    A socket that an earlier ``run`` left at ``path`` is replaced: the copies of that one know the path. The descriptor
    belongs to this object.
    """

    def __init__(self, path: str, copies: Callable[[], Mapping[int, Notices]]) -> None:
        self.path = path
        self._copies = copies
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._socket.bind(path)
            os.chmod(path, 0o666)  # noqa: S103 - a copy may run as another user
        except OSError:
            self._socket.close()
            raise
        #: Messages that count for no copy: of another process, too long, with the credentials of another.
        self.ignored = 0

    async def serve(self) -> None:
        """Read messages for ever."""
        while True:
            await readable(self._socket.fileno())
            for _ in range(_MESSAGES_IN_A_TURN):
                if not self._receive():
                    break
            else:
                await sleep(_PAUSE_S)

    def close(self) -> None:
        """Close the socket, and remove its path."""
        self._socket.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    def _receive(self) -> bool:
        """Read one message. Return False if none waits."""
        room = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(_MOST_DESCRIPTORS * 4)
        try:
            message, ancillary, flags, _ = self._socket.recvmsg(_MESSAGE_SIZE, room, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return False  # EAGAIN; or no memory, which the next turn may have
        sender = 0
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                # The descriptors of FDSTORE=1 and BARRIER=1. The sender of BARRIER=1 waits for this close.
                _close_all(content)
            elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                sender = _CREDENTIALS.unpack_from(content)[0]
        copies = self._copies()
        leader = leader_of(sender, copies) if sender > 0 and not flags & socket.MSG_TRUNC else None
        if leader is None:
            self.ignored += 1
        else:
            copies[leader].take(message)
        return True


def _close_all(content: bytes) -> None:
    descriptors = array.array("i")
    descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
