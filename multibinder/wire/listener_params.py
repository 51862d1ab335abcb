"""The ``params`` of the requests about listeners: one element for each listener, as it is sent."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import msgspec

from multibinder.wire.addresses import Address, TcpAddress
from multibinder.wire.errors import AddressError
from multibinder.wire.excerpt import excerpt
from multibinder.wire.messages import InvalidParamsError, ListenerSpec
from multibinder.wire.options import OPTION_NAMES, Options, check_owner


class ListenerParams(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One element of ``params`` as it is sent. ``owner`` is empty for a client that has no label.

    Root and the binder's own user may name the owner of another uid, as ``label:uid``.

    ``address`` and ``port`` are those of a TCP listener, as the Ruby program sends them. A listener of another kind has
    ``endpoint`` instead, the address in HAProxy's grammar. The options are those of ``Options``; ``shard``,
    ``netns`` and ``shards`` those of ``ListenerSpec``.
    """

    address: str | msgspec.UnsetType = msgspec.UNSET
    port: int | msgspec.UnsetType = msgspec.UNSET
    owner: str = ""
    endpoint: str | msgspec.UnsetType = msgspec.UNSET
    shard: int = 0
    netns: str = ""
    shards: int | None = None
    backlog: int | None = None
    v6only: bool | None = None
    name: str | None = None
    freebind: bool | None = None
    transparent: bool | None = None
    interface: str | None = None
    mark: int | None = None
    mss: int | None = None
    defer_accept: int | None = None
    fastopen: int | None = None
    user_timeout: int | None = None
    keepalive_idle: int | None = None
    keepalive_interval: int | None = None
    keepalive_count: int | None = None
    tos: int | None = None
    rcvbuf: int | None = None
    sndbuf: int | None = None
    mode: int | None = None
    user: int | None = None
    group: int | None = None

    def __post_init__(self) -> None:
        if self.endpoint is not msgspec.UNSET:
            if self.address is not msgspec.UNSET or self.port is not msgspec.UNSET:
                raise ValueError("Object has both `endpoint` and `address` or `port`")
            return
        # msgspec's own wording, to which it adds the element
        for field in ("address", "port"):
            if getattr(self, field) is msgspec.UNSET:
                raise ValueError(f"Object missing required field `{field}`")

    @classmethod
    def of(cls, spec: ListenerSpec, owner: str) -> ListenerParams:
        """Return the element that asks for ``spec``."""
        more = {"shard": spec.shard, "netns": spec.netns, "shards": spec.shards}
        more |= {"owner": owner, "name": spec.options.name}
        return cls(**spec.address.wire_fields(), **more, **spec.options.given)  # type: ignore[arg-type]

    def spec(self) -> ListenerSpec:
        """Return the checked value. Raises AddressError."""
        if self.owner:
            check_owner(self.owner)
        options = _options(msgspec.structs.astuple(self)[_OPTIONS])
        return ListenerSpec(self._address(), options, self.shard, self.netns, self.shards)

    def _address(self) -> Address:
        if isinstance(self.endpoint, str):
            return Address.parse(self.endpoint)
        return TcpAddress.of(self.address, self.port)  # type: ignore[arg-type]  # __post_init__ requires both


_FIRST_OPTION = ListenerParams.__struct_fields__.index(OPTION_NAMES[0])
#: The options among the fields of an element, in the order of ``Options``.
_OPTIONS = slice(_FIRST_OPTION, _FIRST_OPTION + len(OPTION_NAMES))


@functools.lru_cache(maxsize=1024)
def _options(values: tuple[Any, ...]) -> Options:
    """Return the options with these values, which many requests have. Raises AddressError."""
    return Options(*values)


_Element = TypeVar("_Element")

_listener_params = msgspec.json.Decoder(list[ListenerParams])


def decode_listener_params(raw: msgspec.Raw) -> list[ListenerParams]:
    """Read the ``params`` of bind and check. Raises InvalidParamsError, which names the element and field."""
    return decode_elements(raw, _listener_params)


def decode_elements(raw: msgspec.Raw, decoder: msgspec.json.Decoder[list[_Element]]) -> list[_Element]:
    """Read ``params`` with an element for each listener, one at least. Raises what ``decode_listener_params`` does."""
    try:
        params = decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidParamsError(explain(str(error))) from None
    if not params:
        raise InvalidParamsError('params is empty: give at least one {"address": …, "port": …}')
    return params


def check_spec(index: int, params: ListenerParams) -> ListenerSpec:
    """Return the checked value of one element. Raises InvalidParamsError, which names the element."""
    try:
        return params.spec()
    except AddressError as error:
        raise InvalidParamsError(f"params[{index}]: {error}") from None


def explain(complaint: str) -> str:
    """Return msgspec's message, which names the path, with the allowed fields added."""
    where = excerpt(complaint).replace("`$", "`params")
    if "unknown field" in complaint:
        options = ", ".join(OPTION_NAMES)
        return f"{where}; a listener takes address and port, or endpoint; owner, shard, netns, shards, {options}"
    return where
