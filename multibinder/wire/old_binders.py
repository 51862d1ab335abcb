"""Say of a binder that is older than its client what it does not know."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

import msgspec

from multibinder.wire import messages
from multibinder.wire.errors import LocalProtocolError, RequestError
from multibinder.wire.messages import ListenerSpec, Reply

#: msgspec's complaint, as a binder sends it.
_UNKNOWN = re.compile(r"unknown field `(\w+)`")
#: What a binder of version 0.1 knows, beside the address.
_KNOWN_OPTIONS = frozenset({"backlog", "v6only", "name"})


@contextlib.contextmanager
def old_binders_explained(specs: Sequence[ListenerSpec]) -> Iterator[None]:
    """Raise LocalProtocolError for a refusal of a binder that does not know a field of these elements."""
    try:
        yield
    except RequestError as error:
        named = _UNKNOWN.search(str(error))
        if error.code != messages.INVALID_PARAMS or (named is None and "missing required field" not in str(error)):
            raise
        spec = next((spec for spec in specs if _is_new(spec)), None)
        if spec is None:
            raise
        field = named[1] if named else "endpoint"
        raise LocalProtocolError(
            f"this binder is too old for {spec.address}: it does not know '{field}'; upgrade it ('multibinder upgrade')"
        ) from error


def is_unknown(error: BaseException | None, field: str) -> bool:
    """Return whether a binder has refused a request because it does not know this field."""
    named = _UNKNOWN.search(str(error))
    return isinstance(error, RequestError) and named is not None and named[1] == field


def without_shards(spec: ListenerSpec) -> ListenerSpec:
    """Return what names the same listener to a binder that knows no shards."""
    return msgspec.structs.replace(spec, shards=None)


def require_no_ruby(reply: Reply, specs: Sequence[ListenerSpec]) -> None:
    """Raise LocalProtocolError if the Ruby program has answered for a listener that it cannot have."""
    if bytes(reply.result) == b"true" and (new := [spec for spec in specs if _is_new(spec)]):
        raise LocalProtocolError(
            f"this binder is the Ruby program, which has TCP listeners without options only: it cannot have "
            f"{new[0].address}; start 'multibinder serve' in its place"
        )


def _is_new(spec: ListenerSpec) -> bool:
    """Return whether a binder of version 0.1 cannot read the element for a listener."""
    return (
        "endpoint" in spec.address.wire_fields()
        or bool(spec.shard or spec.netns or spec.shards is not None)
        or not spec.options.given.keys() <= _KNOWN_OPTIONS
    )
