"""The names of the public API. ``import multibinder`` shows them, and imports this module at the first use of one."""

# ruff: noqa: I001 ("X as X" makes a name public for type checkers (PEP 484); sorted, it would be a statement for each)

from multibinder.wire.addresses import Address as Address, TcpAddress as TcpAddress
from multibinder.wire.arguments import (
    SOCKET_VARIABLE as SOCKET_VARIABLE,
    BindTarget as BindTarget,
    ReleaseTarget as ReleaseTarget,
)
from multibinder.wire.client import Client as Client
from multibinder.wire.datagram_listener import DatagramListener as DatagramListener
from multibinder.wire.errors import (
    AddressError as AddressError,
    ArgumentError as ArgumentError,
    BindError as BindError,
    BinderTimeout as BinderTimeout,
    BinderUnavailable as BinderUnavailable,
    ConfigurationError as ConfigurationError,
    DescriptorsLost as DescriptorsLost,
    LimitReached as LimitReached,
    ListenerReleased as ListenerReleased,
    LocalProtocolError as LocalProtocolError,
    MultibinderError as MultibinderError,
    NotAllowed as NotAllowed,
    ProtocolError as ProtocolError,
    RemoteProtocolError as RemoteProtocolError,
    RequestError as RequestError,
)
from multibinder.wire.messages import (
    Hello as Hello,
    ListenerSpec as ListenerSpec,
    Moved as Moved,
    Released as Released,
    Upgrade as Upgrade,
)
from multibinder.wire.options import OPTION_NAMES as OPTION_NAMES, Options as Options
from multibinder.wire.shared_listener import PeerAddress as PeerAddress, SharedListener as SharedListener
from multibinder.wire.shortcuts import bind as bind, bind_many as bind_many, release as release, sync as sync
from multibinder.wire.spread import Shards as Shards
from multibinder.wire.status import (
    BinderStatus as BinderStatus,
    Counters as Counters,
    HolderStatus as HolderStatus,
    ListenerHealth as ListenerHealth,
    ListenerStatus as ListenerStatus,
    OwnerStatus as OwnerStatus,
)
