"""Send requests over one connection to the control socket, and receive each reply with its descriptors."""

from __future__ import annotations

import itertools
import math
import socket
import struct
import time
from collections.abc import Sequence

import msgspec

from multibinder.wire import messages, notices, transport
from multibinder.wire.arguments import SOCKET_VARIABLE
from multibinder.wire.decoder import Decoder
from multibinder.wire.errors import (
    BindError,
    BinderTimeout,
    BinderUnavailable,
    DescriptorsLost,
    LimitReached,
    NotAllowed,
    RemoteProtocolError,
    RequestError,
)
from multibinder.wire.messages import Reply

#: The binder is trusted, but a bug there must not fill our memory: 10,000 listeners in a list have about 3 MB.
_REPLY_LIMIT = 64 * 1024 * 1024

_ERRORS = {
    messages.COULD_NOT_BIND: BindError,
    messages.LIMIT_REACHED: LimitReached,
    messages.NOT_ALLOWED: NotAllowed,
}
_reply = msgspec.json.Decoder(Reply)


class Connection:
    """A connected control socket, which belongs to it. One request at a time, from one thread.

    ``sock`` is in blocking mode; its calls wait for ``waits_s`` seconds. ``path`` is named in messages.
    """

    def __init__(self, sock: socket.socket, path: str, waits_s: float) -> None:
        self.path = path
        self.socket = sock
        self._waits_s = waits_s
        self._ids = itertools.count(1)
        self._decoder = Decoder(_REPLY_LIMIT)
        #: What arrived last, for a message about it.
        self._last_part = b""
        #: The descriptors that were received and not taken yet.
        self._descriptors: list[int] = []
        self._lost: DescriptorsLost | None = None
        #: True if the binder had ended the connection before a byte of the last request was sent.
        self.nothing_sent = False

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
        descriptors: Sequence[int] = (),
    ) -> Reply:
        """Send a request, with ``descriptors``, which stay the caller's, and return its reply.

        ``acknowledge`` offers a notice about the reply to ``bind``. ``deadline`` is in seconds of time.monotonic();
        ``timeout`` is only named in messages. Raises BinderUnavailable, BinderTimeout, RemoteProtocolError, and
        RequestError for a refusal.
        """
        request_id = str(next(self._ids))
        self.nothing_sent = False
        try:
            text = messages.encode_request(method, request_id, list(params), acknowledge=acknowledge)
            self._send(text, deadline, descriptors)
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

    def _send(self, request: bytes, deadline: float, descriptors: Sequence[int] = ()) -> bool:
        """Send a message. Return False if the binder has closed its end."""
        rest = memoryview(request)
        while rest:
            self._wait_until(deadline)
            try:
                rest = rest[transport.send(self.socket, rest, descriptors) :]
                descriptors = ()
            except BlockingIOError as error:
                raise TimeoutError from error
            except (BrokenPipeError, ConnectionResetError):
                # Its last message says why, and is read next.
                self.nothing_sent = len(rest) == len(request)
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
            limit_waits(self.socket, left_s)
            self._waits_s = left_s


def limit_waits(sock: socket.socket, seconds: float) -> None:
    """Set SO_SNDTIMEO and SO_RCVTIMEO (socket(7)), after which a blocking call fails with EAGAIN.

    math.inf sets no limit: the kernel takes 0 for that.
    """
    microseconds = 0 if math.isinf(seconds) else max(1, int(seconds * 1e6))
    timeval = struct.pack("@ll", *divmod(microseconds, 10**6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
