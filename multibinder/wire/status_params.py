"""The ``params`` of ``status``."""

from __future__ import annotations

import msgspec

from multibinder.wire.excerpt import excerpt
from multibinder.wire.messages import InvalidParamsError


class StatusParams(msgspec.Struct, omit_defaults=True):
    """The one element of ``params`` that ``status`` may have. A binder of 0.1.0 ignores it.

    ``fresh`` is False for a client to which holders as of the last look are good enough.
    """

    fresh: bool = True


_status_params = msgspec.json.Decoder(list[StatusParams])


def decode_status_params(raw: msgspec.Raw) -> StatusParams:
    """Read the ``params`` of status, which may be empty. Raises InvalidParamsError."""
    try:
        params = _status_params.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidParamsError(excerpt(str(error))) from None
    return params[0] if params else StatusParams()
