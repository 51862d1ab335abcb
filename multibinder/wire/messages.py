"""The messages of the control socket: JSON-RPC 2.0, compatible with github/multibinder 0.0.5, and extended.

The ``params`` of a request are a list with one object for each listener::

    {"jsonrpc":"2.0","id":"1","method":"bind","params":[{"address":"127.0.0.1","port":8000,"backlog":1000}]}
    {"jsonrpc":"2.0","id":"1","result":{"descriptors":1,"listeners":[{"address":"127.0.0.1:8000",…}]}}

The descriptors travel beside the reply, in the order of ``listeners``. Those past the first 252 follow in further
messages, which carry nothing else: ``{"jsonrpc":"2.0","method":"descriptors","params":{"from":252}}``.

A request with ``"acknowledge":true`` promises that the client says whether it holds the descriptors, if the result has
``"acknowledge":true`` too. It does so by a notification, which has no reply:
``{"jsonrpc":"2.0","method":"received","params":{"id":"1"}}``, or ``declined``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from multibinder.wire import kinds
from multibinder.wire.addresses import Address, TcpAddress
from multibinder.wire.errors import AddressError
from multibinder.wire.excerpt import excerpt, shown
from multibinder.wire.options import OPTION_NAMES, Options, check_netns, check_owner, check_shard
from multibinder.wire.status import OwnerStatus

#: The version of the protocol that this module describes. A change that an old peer would misread raises it.
PROTOCOL = 1

# JSON-RPC 2.0, section 5.1. Codes above -32000 belong to the application; 10000 is the Ruby program's.
PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
COULD_NOT_BIND = 10000
LIMIT_REACHED = 10001
CANNOT_UPGRADE = 10002
NOT_ALLOWED = 10003

Id = str | int | float | None

_NO_OPTIONS = Options()


class ListenerSpec(msgspec.Struct, frozen=True):
    """A listener that a client asks for: its address and its options.

    ``shard`` is its number among the listeners on this address, from 0 (SO_REUSEPORT, socket(7)). ``netns`` names its
    network namespace (network_namespaces(7)): empty for the binder's own, the name of one (``ip netns``), an absolute
    path, a PID in digits, or ``cookie:`` and its SO_NETNS_COOKIE.
    """

    address: Address
    options: Options = Options()
    shard: int = 0
    netns: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.address, Address) or not isinstance(self.options, Options):
            raise AddressError(
                f"ListenerSpec takes an Address and Options: {shown(self.address)}, {shown(self.options)}"
            )
        kind = kinds.of_address(self.address)
        kind.check(self.address, self.options)
        check_shard(self.shard)
        if self.shard and not kind.can_shard:
            raise AddressError(f"{self.address}: a listener of the kind {kind.name} has no shards")
        check_netns(self.netns)

    def __str__(self) -> str:
        return f"{self.address} ({self.options.name})" if self.options.name else str(self.address)


class ListenerParams(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One element of ``params`` as it is sent. ``owner`` is empty for a client that has no label.

    Root and the binder's own user may name the owner of another uid, as ``label:uid``.

    ``address`` and ``port`` are those of a TCP listener, as the Ruby program sends them. A listener of another kind has
    ``endpoint`` instead, the address in HAProxy's grammar. The options are those of ``Options``; ``shard`` and
    ``netns`` those of ``ListenerSpec``.
    """

    address: str | msgspec.UnsetType = msgspec.UNSET
    port: int | msgspec.UnsetType = msgspec.UNSET
    owner: str = ""
    endpoint: str | msgspec.UnsetType = msgspec.UNSET
    shard: int = 0
    netns: str = ""
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
        more = {"shard": spec.shard, "netns": spec.netns, "owner": owner, "name": spec.options.name}
        return cls(**spec.address.wire_fields(), **more, **spec.options.given)  # type: ignore[arg-type]

    def spec(self) -> ListenerSpec:
        """Return the checked value. Raises AddressError."""
        if self.owner:
            check_owner(self.owner)
        given = {option: value for option in OPTION_NAMES if (value := getattr(self, option)) is not None}
        return ListenerSpec(self._address(), Options(**given) if given else _NO_OPTIONS, self.shard, self.netns)

    def _address(self) -> Address:
        if isinstance(self.endpoint, str):
            return Address.parse(self.endpoint)
        return TcpAddress.of(self.address, self.port)  # type: ignore[arg-type]  # __post_init__ requires both


class Request(msgspec.Struct):
    """A request as the binder reads it. Its method decodes ``params``.

    ``acknowledge`` belongs to ``bind``: the client promises a notice (``notices.py``) if the result asks for one.
    """

    method: str
    id: Id
    params: msgspec.Raw = msgspec.Raw(b"[]")
    jsonrpc: str = "2.0"
    acknowledge: bool = False


class ErrorObject(msgspec.Struct, omit_defaults=True):
    """The error of a reply (JSON-RPC 2.0, section 5.1)."""

    code: int
    message: str
    data: dict[str, Any] | None = None


class Reply(msgspec.Struct):
    """A reply as a client reads it. The Ruby program answers an unknown method without ``id``."""

    id: Id = None
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: ErrorObject | None = None
    method: str | None = None


class Handoff(msgspec.Struct, frozen=True, omit_defaults=True):
    """A listener that the binder hands over.

    ``address`` is the address that it is bound to (never port 0); ``backlog`` the effective limit of its accept queue,
    in connections; ``created`` is True if this request created it; ``warning`` is a sentence for the caller.
    """

    address: str
    backlog: int
    created: bool = False
    warning: str | None = None


class BindResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of ``bind``: the listeners, and how many descriptors come with the reply and its continuations.

    ``acknowledge`` asks the client for a notice; it is True only if the request offered one.
    """

    listeners: list[Handoff]
    descriptors: int
    acknowledge: bool = False


class Released(msgspec.Struct, frozen=True):
    """The outcome of ``release`` for one address: ``closed``, ``kept`` (by ``owners``) or ``absent``.

    ``claims`` has label and uid of each owner that keeps it. ``had_claim`` is False if nothing was given up, because
    the owner that the request names has no claim. ``reset`` is how many clients waited when the port closed.
    """

    address: str
    outcome: str
    owners: list[str] = []
    claims: list[OwnerStatus] = []
    had_claim: bool = True
    reset: int = 0


class Moved(msgspec.Struct, frozen=True):
    """The outcome of ``move`` for one owner: the addresses of the listeners whose claim has another uid now."""

    owner: str
    to: int
    addresses: list[str]


class Upgrade(msgspec.Struct, frozen=True):
    """The versions before and after an upgrade that is about to happen. The client stays connected."""

    before: str
    after: str


class Hello(msgspec.Struct, frozen=True):
    """The binder that answers. ``capabilities`` names its methods, and ``drain``. ``protocol`` only grows.

    ``upgrade_failure`` tells why the last upgrade failed, if it failed after its trial start.
    ``uid`` is the client's, as the binder sees it; None if an older binder does not tell.
    """

    name: str = "multibinder"
    version: str = "unknown"
    protocol: int = 0
    pid: int = 0
    capabilities: list[str] = []
    upgrade_failure: str | None = None
    uid: int | None = None


_Element = TypeVar("_Element")


class InvalidParamsError(Exception):
    """``params`` is JSON, but not what the method accepts. The message is for the client."""


_request = msgspec.json.Decoder(Request)
_listener_params = msgspec.json.Decoder(list[ListenerParams])


def decode_request(text: bytes) -> Request:
    """Read a request. Raises msgspec.ValidationError if it is no request, msgspec.DecodeError if it is no JSON."""
    try:
        return _request.decode(text)
    except RecursionError:
        raise msgspec.DecodeError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"not UTF-8: {error.reason}") from None


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


def encode(message: object) -> bytes:
    """Return one message with the newline that ends it."""
    return msgspec.json.encode(message) + b"\n"


def encode_request(method: str, id: Id, params: Sequence[object], *, acknowledge: bool = False) -> bytes:  # noqa: A002 (JSON-RPC's word)
    request = {"jsonrpc": "2.0", "method": method, "id": id, "params": params}
    return encode(request | {"acknowledge": True} if acknowledge else request)


def encode_result(id: Id, result: object) -> bytes:  # noqa: A002
    return encode({"jsonrpc": "2.0", "id": id, "result": result})


def around_result(id: Id) -> tuple[bytes, bytes]:  # noqa: A002
    """Return what comes before and after the JSON text of a result."""
    return msgspec.json.encode({"jsonrpc": "2.0", "id": id})[:-1] + b',"result":', b"}\n"


def encode_error(id: Id, code: int, message: str, data: dict[str, Any] | None = None) -> bytes:  # noqa: A002
    return encode({"jsonrpc": "2.0", "id": id, "error": ErrorObject(code, message, data)})


def encode_continuation(first: int) -> bytes:
    """Return the message that carries the descriptors of the reply before it, from number ``first`` on."""
    return encode({"jsonrpc": "2.0", "method": "descriptors", "params": {"from": first}})


def explain(complaint: str) -> str:
    """Return msgspec's message, which names the path, with the allowed fields added."""
    where = excerpt(complaint).replace("`$", "`params")
    if "unknown field" in complaint:
        return (
            f"{where}; a listener takes address and port, or endpoint; owner, shard, netns, {', '.join(OPTION_NAMES)}"
        )
    return where
