"""What a client says about the answer to its ``bind``: a notification, which has no reply."""

from __future__ import annotations

from typing import Literal

import msgspec

from multibinder.wire.messages import Id, encode


class NoticeParams(msgspec.Struct):
    """The ``params`` of a notice: the id of the request whose answer it is about."""

    id: Id


class Notice(msgspec.Struct):
    """What a client says about the answer to a ``bind``: it holds the descriptors, or it could not take them."""

    method: Literal["received", "declined"]
    params: NoticeParams


_notice = msgspec.json.Decoder(Notice)


def decode_notice(text: bytes) -> Notice | None:
    """Read a notice. None if it is another message."""
    try:
        return _notice.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def encode_notice(id: Id, *, received: bool) -> bytes:  # noqa: A002
    return encode({"jsonrpc": "2.0", "method": "received" if received else "declined", "params": {"id": id}})
