"""The ``params`` and the result of ``adopt``.

A client asks twice with the same params. The first answer says how many descriptors it may send (``send``). The second
request carries them, in the order of its elements, and its answer has the outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from multibinder.wire.listener_params import ListenerParams, decode_elements
from multibinder.wire.messages import InvalidParamsError
from multibinder.wire.transport import MAX_DESCRIPTORS

#: The word for the method in ``hello``.
ADOPT = "adopt"


class AdoptParams(ListenerParams, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One element of ``params``: that of ``bind``, and what the client knows of the socket.

    ``holders`` are the processes that have it. ``moves_clients``: its group (SO_REUSEPORT) has the program with which
    the kernel gives the clients of a socket that stops to another one.
    """

    holders: tuple[int, ...] = ()
    moves_clients: bool = False


class Adopted(msgspec.Struct, frozen=True, omit_defaults=True):
    """The outcome of ``adopt`` for one socket.

    ``outcome`` is ``adopted``, or ``held`` if the binder has this socket already. ``shard`` is its number among the
    listeners on the address; ``warning`` is a sentence for the caller.
    """

    address: str
    outcome: str
    shard: int = 0
    backlog: int = 0
    warning: str | None = None


class AdoptResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of ``adopt``: the permission to send so many descriptors, or the outcome for each of them.

    ``uid`` is that of the binder, in its own user namespace.
    """

    send: int = 0
    uid: int = 0
    listeners: Sequence[Adopted] = ()


def decode_adopt_params(raw: msgspec.Raw) -> list[AdoptParams]:
    """Read the ``params`` of adopt. Raises InvalidParamsError."""
    params = decode_elements(raw, _decoder)
    if len(params) > MAX_DESCRIPTORS:
        raise InvalidParamsError(f"params has {len(params)} elements: one request adopts {MAX_DESCRIPTORS} at most")
    return params


_decoder = msgspec.json.Decoder(list[AdoptParams])
