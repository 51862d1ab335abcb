"""The errors that the library raises.

::

    MultibinderError
    ├── ConfigurationError        no control socket is configured
    ├── ArgumentError             an argument that the call does not take (also a ValueError)
    │   └── AddressError          an address, an option or a label that cannot be
    ├── BinderUnavailable         no binder answers at the control socket (also an OSError: ConnectionError)
    │   └── BinderTimeout         it did not answer in time (also a TimeoutError)
    ├── ListenerReleased          accept(): the binder has closed the listener for good (also an OSError: EINVAL)
    ├── ProtocolError
    │   ├── LocalProtocolError    the caller asked for what the protocol cannot carry
    │   └── RemoteProtocolError   the peer sent what the protocol does not allow
    │       └── DescriptorsLost   this process may not have so many open files
    └── RequestError              the binder answered with a refusal: ``code``, ``data``
        ├── BindError             an address cannot be bound: ``errno``, ``address``, ``listener`` in the way
        ├── NotAllowed            a policy, or the label of another user, forbids it
        └── LimitReached          a limit of this user or of the binder is reached: ``limit``
"""

from __future__ import annotations

import errno as errno_names
from collections.abc import Mapping, Sequence


class MultibinderError(Exception):
    """The root of every error that multibinder raises on purpose."""


class ConfigurationError(MultibinderError):
    """No control socket is configured; the message says what to set."""


class ArgumentError(MultibinderError, ValueError):
    """An argument has a type or a value that the call does not take. Nothing was sent."""


class AddressError(ArgumentError):
    """An address, an option or a label that cannot be; the message says why and what to write instead."""


class BinderUnavailable(MultibinderError, ConnectionError):
    """No binder answers at the control socket."""


class BinderTimeout(BinderUnavailable, TimeoutError):
    """The binder did not answer within the client's timeout."""


class ListenerReleased(MultibinderError, OSError):
    """The binder has released the listener: no client can reach it any more, in any process. ``errno`` is EINVAL.

    ``accept()`` raises it. A server should stop, or bind the address again.
    """


class ProtocolError(MultibinderError):
    """One end of the control socket broke the protocol."""


class LocalProtocolError(ProtocolError):
    """The caller asked for something that the protocol cannot express. Nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol does not allow. The connection cannot be used any more."""


class DescriptorsLost(RemoteProtocolError):
    """The kernel dropped descriptors that came with ``arrived``: this process is at RLIMIT_NOFILE (unix(7))."""

    def __init__(self, message: str, arrived: bytes = b"") -> None:
        super().__init__(message)
        self.arrived = arrived


class RequestError(MultibinderError):
    """The binder answered with a JSON-RPC error object.

    ``code`` is the JSON-RPC code, ``data`` the details of the binder, which may be empty.
    """

    def __init__(self, message: str, code: int, data: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.data: Mapping[str, object] = data or {}


class BindError(RequestError):
    """An address cannot be bound. Nothing of the request was bound.

    ``errno`` is the kernel's errno if the kernel refused, else None; ``address`` is the address that failed. If a
    listener of the binder is in the way, and the caller may know of it: ``listener`` is its address, ``owners`` are
    its owners, and ``v6only`` is its IPV6_V6ONLY, None for IPv4.
    """

    @property
    def errno(self) -> int | None:
        value = self.data.get("errno")
        return value if isinstance(value, int) else None

    @property
    def address(self) -> str | None:
        return self._text("address")

    @property
    def listener(self) -> str | None:
        return self._text("listener")

    @property
    def owners(self) -> Sequence[str]:
        value = self.data.get("owners")
        return value if isinstance(value, list) else []

    @property
    def v6only(self) -> bool | None:
        value = self.data.get("v6only")
        return value if isinstance(value, bool) else None

    def _text(self, name: str) -> str | None:
        value = self.data.get(name)
        return value if isinstance(value, str) else None


class NotAllowed(RequestError):
    """A rule of the policy forbids the request, or no rule allows it, or the owner label belongs to another user."""


class LimitReached(RequestError):
    """A limit of this user or of the binder is reached; ``limit`` names it. Try again later."""

    @property
    def limit(self) -> str | None:
        value = self.data.get("limit")
        return value if isinstance(value, str) else None


def errname(number: int) -> str:
    """Return the symbolic name of an errno: ``errname(98) == 'EADDRINUSE'``."""
    return errno_names.errorcode.get(number, str(number))
