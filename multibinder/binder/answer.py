"""Answers of the binder: messages for a client, and grants to take back if the client never receives them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import msgspec

from multibinder.binder.listener import Grant
from multibinder.wire import messages


class Answer(msgspec.Struct, frozen=True):
    """Messages, or pieces of one, to send in this order, each with the descriptors that it carries.

    The descriptors belong to the store and are not closed after sending. ``grants`` are taken back if the client goes
    away before it has received all messages; with ``acknowledge``, if it does not say that it has. ``id`` is the
    request's.
    """

    parts: Sequence[tuple[bytes, Sequence[int]]]
    grants: Sequence[Grant] = ()
    id: messages.Id = None
    acknowledge: bool = False


#: A list up to this size is copied into each answer. One sendmsg(2) costs less than three then.
_COPIED_BYTES = 64 * 1024

#: The JSON text of a result: before its list of listeners, the list, and after it.
Pieces = tuple[bytes, bytes, bytes]
#: Takes the answer to a request that could not be answered at once.
Reply = Callable[[Answer], None]


def result(request_id: messages.Id, value: object) -> Answer:
    """Return the answer to a request that succeeded with ``value``."""
    return Answer([(messages.encode_result(request_id, value), ())])


def listing(request_id: messages.Id, result: Pieces) -> Answer:
    """Return the answer to a request with this result. The answers of many clients can share its long piece."""
    before, listeners, after = result
    head, tail = messages.around_result(request_id)
    if len(listeners) <= _COPIED_BYTES:
        return Answer([(head + before + listeners + after + tail, ())], (), request_id)
    return Answer([(head + before, ()), (listeners, ()), (after + tail, ())], (), request_id)


def refuse(request_id: messages.Id, code: int, sentence: str, data: dict[str, object] | None = None) -> Answer:
    """Return the answer to a request that failed: a JSON-RPC error object."""
    return Answer([(messages.encode_error(request_id, code, sentence, data), ())])


def turn_down(text: bytes, limit: str, sentence: str) -> Answer:
    """Return the answer to a request that is not served because ``limit`` is reached. ``text`` is the request."""
    request_id = None
    with contextlib.suppress(msgspec.DecodeError):
        request_id = messages.decode_request(text).id
    return refuse(request_id, messages.LIMIT_REACHED, f"Not now: {sentence}; try again later", {"limit": limit})
