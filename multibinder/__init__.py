"""Get LISTEN sockets that outlive your process from a multibinder daemon.

    import multibinder
    listener = multibinder.bind("127.0.0.1", 8000)

The binder keeps the port open while your program restarts; clients wait in the kernel's accept queue.
"""

from multibinder.wire.addresses import Address, TcpAddress
from multibinder.wire.arguments import SOCKET_VARIABLE
from multibinder.wire.client import Client
from multibinder.wire.errors import (
    AddressError,
    ArgumentError,
    BindError,
    BinderTimeout,
    BinderUnavailable,
    ConfigurationError,
    LimitReached,
    ListenerReleased,
    LocalProtocolError,
    MultibinderError,
    NotAllowed,
    ProtocolError,
    RemoteProtocolError,
    RequestError,
)
from multibinder.wire.messages import Hello, ListenerSpec, Released, Upgrade
from multibinder.wire.options import OPTION_NAMES, Options
from multibinder.wire.shared_listener import PeerAddress, SharedListener
from multibinder.wire.shortcuts import bind, bind_many, release, sync
from multibinder.wire.status import BinderStatus, Counters, HolderStatus, ListenerHealth, ListenerStatus, OwnerStatus

__version__ = "0.1.0"

__all__ = [
    "OPTION_NAMES",
    "SOCKET_VARIABLE",
    "Address",
    "AddressError",
    "ArgumentError",
    "BindError",
    "BinderStatus",
    "BinderTimeout",
    "BinderUnavailable",
    "Client",
    "ConfigurationError",
    "Counters",
    "Hello",
    "HolderStatus",
    "LimitReached",
    "ListenerHealth",
    "ListenerReleased",
    "ListenerSpec",
    "ListenerStatus",
    "LocalProtocolError",
    "MultibinderError",
    "NotAllowed",
    "Options",
    "OwnerStatus",
    "PeerAddress",
    "ProtocolError",
    "Released",
    "RemoteProtocolError",
    "RequestError",
    "SharedListener",
    "TcpAddress",
    "Upgrade",
    "__version__",
    "bind",
    "bind_many",
    "release",
    "sync",
]
