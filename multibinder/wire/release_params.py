"""The ``params`` of ``release``."""

from __future__ import annotations

import msgspec

from multibinder.wire.listener_params import ListenerParams, decode_elements
from multibinder.wire.messages import InvalidParamsError, ListenerSpec

#: The capability (``Hello.capabilities``) of a binder that knows ``drain``.
DRAIN = "drain"
#: The capability of a binder that knows ``leave_open``.
LEAVE_OPEN = "leave-open"
#: The longest time that a listener may drain: a day.
LONGEST_DRAIN_S = 86400.0


class ReleaseParams(ListenerParams, forbid_unknown_fields=True, omit_defaults=True):
    """One element of ``params`` as it is sent. ``drain`` is in seconds.

    With ``leave_open`` the binder lets go of the listener, and the port stays open for the processes that have it.
    """

    drain: float = 0.0
    leave_open: bool = False


def release_params(spec: ListenerSpec, owner: str, drain_s: float, *, leave_open: bool = False) -> ListenerParams:
    """Return the element that asks for the release of ``spec``. An old binder can read it without the last two."""
    if not drain_s and not leave_open:
        return ListenerParams.of(spec, owner)
    return msgspec.structs.replace(ReleaseParams.of(spec, owner), drain=drain_s, leave_open=leave_open)


def decode_release_params(raw: msgspec.Raw) -> list[ReleaseParams]:
    """Read the ``params``. Raises InvalidParamsError, which names the element and field."""
    params = decode_elements(raw, _decoder)
    for index, element in enumerate(params):
        if not 0 <= element.drain <= LONGEST_DRAIN_S:
            raise InvalidParamsError(
                f"params[{index}]: drain {element.drain:g} is out of range: give seconds from 0 to {LONGEST_DRAIN_S:g}"
            )
        if element.leave_open and element.drain:
            raise InvalidParamsError(
                f"params[{index}]: a listener that is left open does not drain: leave out drain, or leave_open"
            )
    return params


_decoder = msgspec.json.Decoder(list[ReleaseParams])
