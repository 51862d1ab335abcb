"""One connection to the binder's control socket: requests, replies, and the descriptors that come with them."""

import errno
import json
import os
import socket
import sys
import time

from multibinder.launch.direct.errors import Away, Refused
from multibinder.launch.direct.received import close

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The most descriptors in one message (SCM_MAX_FD is 253 in the kernel).
DESCRIPTORS_PER_MESSAGE = 252
#: sizeof(int) on every Linux.
_INT_BYTES = 4
_REPLY_LIMIT = 16 * 1024 * 1024


class Connection:
    """One connection to the control socket, until ``deadline`` (time.monotonic())."""

    def __init__(self, path: str, deadline: float) -> None:
        self._path = path
        self._deadline = deadline
        self._arrived = b""
        self._descriptors: list[int] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._limit()
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise Away(f"cannot reach the binder at {path}: {_why(error, path)}") from None

    def ask(self, method: str, params: "list[dict[str, Any]]", **members: "Any") -> "Any":
        """Send a request and return its result. Raises Refused with the binder's reason, Away.

        ``members`` are further members of the request: ``acknowledge``.
        """
        request = {"jsonrpc": "2.0", "method": method, "id": "1", "params": params, **members}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except TimeoutError:
            raise Away(f"the binder at {self._path} does not read") from None
        except OSError:
            pass  # its last message says why
        reply = self.next_message()
        if reply.get("error"):
            said = str(reply["error"].get("message") or reply["error"])
            old = "; this binder is too old for that: 'multibinder upgrade'" if "unknown field" in said else ""
            raise Refused(f"{said}{old}")
        return reply.get("result")

    def next_message(self) -> "dict[str, Any]":
        """Return the next message of the binder. The Ruby program ends none with a newline. Raises Refused, Away."""
        while True:
            text, newline, rest = self._arrived.partition(b"\n")
            if text:
                try:
                    message = json.loads(text)
                    self._arrived = rest
                    break
                except ValueError:
                    if newline or len(text) > _REPLY_LIMIT:
                        raise no_binder(self._path, repr(text[:80])) from None
            self._receive()
        if not isinstance(message, dict):
            raise no_binder(self._path, repr(text[:80]))
        return message

    def notify(self, what: str, result: "Any") -> None:
        """Say what became of the descriptors, if the binder asks for it. Raises Away if it has taken them back."""
        if result is True or not result.get("acknowledge"):
            return
        try:
            self._socket.sendall(json.dumps({"jsonrpc": "2.0", "method": what, "params": {"id": "1"}}).encode() + b"\n")
        except OSError:
            if what == "received":
                raise Away(f"the binder at {self._path} ended before it knew that its listeners had come") from None

    def take(self) -> "list[int]":
        """Return the descriptors that came since the last call. The caller owns them."""
        descriptors, self._descriptors = self._descriptors, []
        return descriptors

    def close(self) -> None:
        self._socket.close()
        close(self._descriptors)

    def _receive(self) -> None:
        try:
            self._limit()
            room = socket.CMSG_SPACE((DESCRIPTORS_PER_MESSAGE + 1) * _INT_BYTES)
            chunk, ancillary, _, _ = self._socket.recvmsg(65536, room, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            raise Away(f"the binder at {self._path} did not answer in time") from None
        except OSError as error:
            raise Away(f"the binder at {self._path} ended the connection: {error.strerror}") from None
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                # The import of array takes longer.
                for at in range(0, len(content) - _INT_BYTES + 1, _INT_BYTES):
                    self._descriptors.append(int.from_bytes(content[at : at + _INT_BYTES], sys.byteorder))
        if not chunk:
            raise Away(f"the binder at {self._path} closed the connection without an answer")
        self._arrived += chunk

    def _limit(self) -> None:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._socket.settimeout(left_s)


def no_binder(path: str, answer: str) -> Refused:
    return Refused(
        f"{path} is not the control socket of a binder: it answers {answer}; MULTIBINDER_SOCK or --socket has to name "
        "that of 'multibinder serve'"
    )


def _why(error: OSError, path: str) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such socket; is 'multibinder serve' running?"
    if isinstance(error, ConnectionRefusedError) and (os.path.isfile(path) or os.path.isdir(path)):
        return "it is not a socket"
    if error.errno == errno.EPROTOTYPE:
        return "it is a socket of another type, and not the control socket of a binder"
    if isinstance(error, ConnectionRefusedError):
        return "no process listens there any more; is 'multibinder serve' running?"
    if isinstance(error, PermissionError):
        return "permission denied; the binder's --mode and --group say who may connect"
    return error.strerror or str(error)
