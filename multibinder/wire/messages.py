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
from typing import Any

import msgspec

from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from multibinder.wire.errors import AddressError
from multibinder.wire.excerpt import shown
from multibinder.wire.options import Options, check_netns, check_shard, check_shards
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
COULD_NOT_ADOPT = 10004

Id = str | int | float | None


class ListenerSpec(msgspec.Struct, frozen=True):
    """A listener that a client asks for: its address and its options.

    ``shard`` is its number among the listeners on this address, from 0 (SO_REUSEPORT, socket(7)). ``netns`` names its
    network namespace (network_namespaces(7)): empty for the binder's own, the name of one (``ip netns``), an absolute
    path, a PID in digits, or ``cookie:`` and its SO_NETNS_COOKIE. ``shards`` is how many listeners the owner
    has on this address: those with this number, or a greater one, are released. None leaves them.
    """

    address: Address
    options: Options = Options()
    shard: int = 0
    netns: str = ""
    shards: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.address, Address) or not isinstance(self.options, Options):
            raise AddressError(
                f"ListenerSpec takes an Address and Options: {shown(self.address)}, {shown(self.options)}"
            )
        kind = kinds.of_address(self.address)
        kind.check(self.address, self.options)
        check_shard(self.shard)
        if self.shards is not None:
            check_shards(self.shards)
        if self.shard and not kind.can_shard:
            raise AddressError(f"{self.address}: a listener of the kind {kind.name} has no shards")
        if check_netns(self.netns) and not self.address.is_in_netns:
            raise AddressError(f"{self.address} is the same in every network namespace: leave netns out")

    def __str__(self) -> str:
        parts = [self.options.name] if self.options.name else []
        parts += [f"shard {self.shard}"] if self.shard else []
        parts += [f"netns {self.netns}"] if self.netns else []
        return f"{self.address} ({', '.join(parts)})" if parts else str(self.address)


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


class InvalidParamsError(Exception):
    """``params`` is JSON, but not what the method accepts. The message is for the client."""


_request = msgspec.json.Decoder(Request)


def decode_request(text: bytes) -> Request:
    """Read a request. Raises msgspec.ValidationError if it is no request, msgspec.DecodeError if it is no JSON."""
    try:
        return _request.decode(text)
    except RecursionError:
        raise msgspec.DecodeError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"not UTF-8: {error.reason}") from None


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
