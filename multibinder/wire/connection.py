"""Send requests over one connection to the control socket, and receive each reply with its descriptors."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import stat
import struct
import time
from collections.abc import Sequence

import msgspec

from multibinder.wire import messages, notices, transport
from multibinder.wire.decoder import Decoder
from multibinder.wire.errors import (
    BindError,
    BinderTimeout,
    BinderUnavailable,
    ConfigurationError,
    DescriptorsLost,
    LimitReached,
    NotAllowed,
    RemoteProtocolError,
    RequestError,
)
from multibinder.wire.messages import Reply

#: The variable with the path of the control socket, for every client and for ``multibinder serve``.
SOCKET_VARIABLE = "MULTIBINDER_SOCK"

#: The binder is trusted, but a bug there must not fill our memory: 10,000 listeners in a list have about 3 MB.
_REPLY_LIMIT = 64 * 1024 * 1024

_ERRORS = {
    messages.COULD_NOT_BIND: BindError,
    messages.LIMIT_REACHED: LimitReached,
    messages.NOT_ALLOWED: NotAllowed,
}
_reply = msgspec.json.Decoder(Reply)


class Connection:
    """A connected control socket. One request at a time, from one thread.

    ``path`` defaults to $MULTIBINDER_SOCK. The constructor connects within ``timeout`` seconds; it raises
    ConfigurationError or BinderUnavailable.
    """

    def __init__(self, path: str | os.PathLike[str] | None, timeout: float) -> None:
        self.path = os.fspath(path or os.environ.get(SOCKET_VARIABLE) or "")
        if not self.path:
            raise ConfigurationError(
                f"{SOCKET_VARIABLE} is not set: set it to the path of the binder's control socket "
                "(as given to 'multibinder serve --socket'), or pass socket_path="
            )
        self._ids = itertools.count(1)
        self._decoder = Decoder(_REPLY_LIMIT)
        #: What arrived last, for a message about it.
        self._last_part = b""
        #: The descriptors that were received and not taken yet.
        self._descriptors: list[int] = []
        self._lost: DescriptorsLost | None = None
        self.socket, self._waits_s = _connect(self.path, timeout)

    def close(self) -> None:
        """Close the connection, and the descriptors that were received and not taken."""
        self.socket.close()
        transport.close_all(self._descriptors)
        self._descriptors.clear()

    def take_descriptors(self) -> list[int]:
        """Return the descriptors that came with the replies since the last call. The caller owns them.

        Raises DescriptorsLost if the kernel had to drop some; none are left open then.
        """
        descriptors, self._descriptors = self._descriptors, []
        lost, self._lost = self._lost, None
        if lost is not None:
            transport.close_all(descriptors)
            raise lost
        return descriptors

    @property
    def received(self) -> int:
        """The number of descriptors that ``take_descriptors`` would return."""
        return len(self._descriptors)

    def ask(
        self,
        method: str,
        params: Sequence[object],
        timeout: float,
        deadline: float,
        *,
        acknowledge: bool = False,
    ) -> Reply:
        """Send a request and return its reply.

        ``acknowledge`` offers a notice about the reply to ``bind``. ``deadline`` is in seconds of time.monotonic();
        ``timeout`` is only named in messages. Raises BinderUnavailable, BinderTimeout, RemoteProtocolError, and
        RequestError for a refusal.
        """
        request_id = str(next(self._ids))
        try:
            self._send(messages.encode_request(method, request_id, list(params), acknowledge=acknowledge), deadline)
            reply = self.next_reply(deadline)
        except TimeoutError as error:
            raise BinderTimeout(f"the binder at {self.path} did not answer '{method}' within {timeout:g} s") from error
        if reply.error is not None:
            kind = _ERRORS.get(reply.error.code, RequestError)
            raise kind(reply.error.message, reply.error.code, reply.error.data)
        if reply.id != request_id:
            raise RemoteProtocolError(f"asked with id {request_id}, answered with id {reply.id!r}")
        return reply

    def notify(self, reply: Reply, *, received: bool, deadline: float) -> bool:
        """Tell the binder whether the descriptors of a reply have been received.

        Return False if the binder cannot be told: it has ended the connection, and takes the listeners back.
        """
        try:
            return self._send(notices.encode_notice(reply.id, received=received), deadline)
        except TimeoutError:
            return False

    def next_reply(self, deadline: float) -> Reply:
        """Return the next message of the binder. Raises TimeoutError, BinderUnavailable, RemoteProtocolError."""
        while (text := self._next_message()) is None:
            self._wait_until(deadline)
            try:
                arrived, descriptors = transport.receive(self.socket)
            except BlockingIOError as error:
                raise TimeoutError from error
            except ConnectionResetError:
                arrived, descriptors = b"", []
            except DescriptorsLost as error:
                # The rest of the reply is read first, so that the connection can be used for a smaller request.
                arrived, descriptors, self._lost = error.arrived, [], error
            if not arrived:
                raise BinderUnavailable(f"the binder at {self.path} closed the connection without an answer")
            self._descriptors += descriptors
            self._decoder.feed(arrived)
            self._last_part = arrived
        try:
            return _reply.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._no_binder(text) from error

    def _next_message(self) -> bytes | None:
        try:
            return self._decoder.next_message()
        except RemoteProtocolError as error:
            raise self._no_binder(self._last_part) from error

    def _no_binder(self, answer: bytes) -> RemoteProtocolError:
        return RemoteProtocolError(
            f"{self.path} is not the control socket of a binder: it answers {answer[:80]!r}; "
            f"{SOCKET_VARIABLE} or --socket has to name that of 'multibinder serve'"
        )

    def _send(self, request: bytes, deadline: float) -> bool:
        """Send a message. Return False if the binder has closed its end."""
        rest = memoryview(request)
        while rest:
            self._wait_until(deadline)
            try:
                rest = rest[transport.send(self.socket, rest) :]
            except BlockingIOError as error:
                raise TimeoutError from error
            except (BrokenPipeError, ConnectionResetError):
                # Its last message says why, and is read next.
                return False
        return True

    def _wait_until(self, deadline: float) -> None:
        """Set the timeout of the next call on the socket to the deadline.

        A present timeout that is at most 5 % too long is kept, which saves system calls.
        """
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        if not left_s <= self._waits_s <= left_s * 1.05:
            _limit_waits(self.socket, left_s)
            self._waits_s = left_s


def _connect(path: str, timeout: float) -> tuple[socket.socket, float]:
    """Return a connected socket in blocking mode, and its timeout in seconds."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A non-blocking connect() fails at once if the binder's queue is full. A blocking one waits for room until the
        # send timeout (unix_stream_connect() in net/unix/af_unix.c).
        _limit_waits(sock, timeout)
        sock.connect(path)
    except BlockingIOError as error:
        sock.close()
        raise BinderTimeout(f"the binder at {path} did not accept the connection within {timeout:g} s") from error
    except OSError as error:
        sock.close()
        raise _unavailable(path, error) from error
    return sock, timeout


def _limit_waits(sock: socket.socket, seconds: float) -> None:
    """Set SO_SNDTIMEO and SO_RCVTIMEO (socket(7)), after which a blocking call fails with EAGAIN."""
    timeval = struct.pack("@ll", *divmod(max(1, int(seconds * 1e6)), 10**6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)


def _unavailable(path: str, error: OSError) -> BinderUnavailable:
    denied = "permission denied; the binder's --mode and --group say who may connect"
    why = {
        errno.ENOENT: "there is no such socket; is 'multibinder serve' running?",
        errno.ECONNREFUSED: "no process listens there any more; is 'multibinder serve' running?"
        if _is_socket(path)
        else "it is not a socket",
        errno.EACCES: denied,
        errno.EPERM: denied,
        errno.EPROTOTYPE: "it is a socket of another type, and not the control socket of a binder",
    }.get(error.errno or 0, str(error.strerror or error))
    return BinderUnavailable(f"cannot reach the binder at {path}: {why}")


def _is_socket(path: str) -> bool:
    """Return whether the file is a socket, as far as it can be seen."""
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True
