"""The ``params`` of ``move``."""

from __future__ import annotations

import msgspec

from multibinder.wire.errors import AddressError
from multibinder.wire.listener_params import explain
from multibinder.wire.messages import InvalidParamsError
from multibinder.wire.options import LARGEST_UID, check_owner


class MoveParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One element of the ``params`` of ``move``: an owner, as ``label:uid``, and the uid that gets its claims."""

    owner: str
    to: int


def decode_move_params(raw: msgspec.Raw) -> list[MoveParams]:
    """Read the ``params`` of move. Raises InvalidParamsError, which names the element and field."""
    try:
        params = _decoder.decode(raw)
        for index, element in enumerate(params):
            if ":" not in check_owner(element.owner):
                raise InvalidParamsError(f"params[{index}]: owner {element.owner} names no uid: write label:uid")
            if not 0 <= element.to < LARGEST_UID:
                raise InvalidParamsError(f"params[{index}]: {element.to} is no uid")
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, AddressError) as error:
        raise InvalidParamsError(explain(str(error))) from None
    return params


_decoder = msgspec.json.Decoder(list[MoveParams])
