"""Receive the descriptors of a reply to ``bind``, and tell the binder whether that succeeded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

import msgspec

from multibinder.wire import transport
from multibinder.wire.connection import Connection
from multibinder.wire.errors import BinderTimeout, BinderUnavailable, DescriptorsLost, RemoteProtocolError
from multibinder.wire.messages import BindResult, Handoff, Reply
from multibinder.wire.transport import MAX_DESCRIPTORS

#: A notice fits into the socket's buffer. This time is for the case that it does not.
_NOTICE_S = 1.0

T = TypeVar("T")


class Reception:
    """The reception of the listeners of one reply, as a context manager. ``asked`` of them were asked for.

    The binder takes the listeners back unless it is told that they have arrived. It is told so at the end of the block,
    or, after an exception, that they could not be taken. BinderUnavailable is raised if it has taken them back already.

    An old binder does not ask to be told. The Ruby program binds only the first address, and answers true.
    """

    def __init__(self, connection: Connection, reply: Reply, asked: int) -> None:
        self._connection = connection
        self._reply = reply
        if bytes(reply.result) == b"true":
            self._result = BindResult([], 1)
            return
        self._result = decode_result(reply, BindResult)
        if self._result.descriptors != asked:
            raise RemoteProtocolError(f"asked for {asked} listeners, {self._result.descriptors} were announced")

    @property
    def handoffs(self) -> Sequence[Handoff]:
        return self._result.listeners

    def __enter__(self) -> Reception:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._result.acknowledge:
            return
        told = self._connection.notify(self._reply, received=error is None, deadline=time.monotonic() + _NOTICE_S)
        if error is None and not told:
            raise BinderUnavailable(
                f"the binder at {self._connection.path} ended the connection, and took the listeners back, before it "
                "was told that they had arrived; ask again"
            )

    def descriptors(self, timeout: float, deadline: float) -> Sequence[int]:
        """Return the descriptors of the reply, which the caller owns.

        ``timeout`` is only named in messages. Raises BinderTimeout, DescriptorsLost, RemoteProtocolError.
        """
        announced = self._result.descriptors
        try:
            for _ in range(MAX_DESCRIPTORS, announced, MAX_DESCRIPTORS):
                self._connection.next_reply(deadline)
        except TimeoutError as error:
            raise BinderTimeout(
                f"{self._connection.received} of {announced} descriptors came from {self._connection.path} "
                f"within {timeout:g} s"
            ) from error
        try:
            descriptors = self._connection.take_descriptors()
        except DescriptorsLost as error:
            raise DescriptorsLost(
                f"the {announced} listeners could not be received, and none was: {error}; "
                "raise the limit, or ask for fewer"
            ) from error
        if len(descriptors) != announced:
            transport.close_all(descriptors)
            raise RemoteProtocolError(
                f"asked for {announced} listeners; {announced} were announced, {len(descriptors)} came"
            )
        return descriptors


def decode_result(reply: Reply, kind: type[T]) -> T:
    """Return the result of a reply. Raises RemoteProtocolError."""
    try:
        return msgspec.json.decode(reply.result, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"a result that makes no sense: {bytes(reply.result)[:80]!r} ({error})") from error
