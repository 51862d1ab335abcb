"""The client of a binder, and ``bind`` and ``bind_many``, which are enough for most programs."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterable, Sequence
from types import TracebackType

from multibinder.wire import kinds, messages
from multibinder.wire.addresses import Address, TcpAddress
from multibinder.wire.connection import SOCKET_VARIABLE, Connection
from multibinder.wire.errors import (
    BindError,
    LocalProtocolError,
    RequestError,
    errname,
)
from multibinder.wire.listener import close_all, verify_all_received
from multibinder.wire.messages import Hello, ListenerParams, ListenerSpec, Released, Reply, Upgrade
from multibinder.wire.options import Options
from multibinder.wire.reception import Reception, decode_result
from multibinder.wire.shared_listener import SharedListener
from multibinder.wire.status import BinderStatus, ListenerStatus
from multibinder.wire.status_params import StatusParams

DEFAULT_TIMEOUT_S = 10.0

#: A listener to ask for: ``(host, port)`` of a TCP listener, an address, or an address with options.
BindTarget = ListenerSpec | Address | tuple[str, int]
# Inside the class Client, the name ``list`` means its method.
_Statuses = list[ListenerStatus]
_Releases = list[Released]
_Moves = list[messages.Moved]
_Sockets = list[SharedListener]


class Client:
    """One connection to a binder. Use it as a context manager; one request at a time, from one thread.

    ``socket_path`` defaults to $MULTIBINDER_SOCK; ``timeout`` is in seconds, for each call as a whole. The
    constructor connects, and raises ConfigurationError or BinderUnavailable.

        with multibinder.Client() as binder:
            for listener in binder.list():
                print(listener.address, listener.owners)
    """

    def __init__(
        self, socket_path: str | os.PathLike[str] | None = None, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self.timeout = timeout
        self._connection = Connection(socket_path, timeout)

    @property
    def socket_path(self) -> str:
        return self._connection.path

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. The sockets that were received through it stay open, because the caller owns them."""
        self._connection.close()

    def hello(self) -> Hello:
        """Return the version and the methods of the binder. The Ruby program, which has no ``hello``, is protocol 0."""
        try:
            reply = self._ask("hello", [])
        except RequestError as error:
            if error.code != messages.METHOD_NOT_FOUND:
                raise
            return Hello(name="unknown", capabilities=["bind"])
        return decode_result(reply, Hello)

    def bind(
        self, wanted: Iterable[BindTarget], *, owner: str = "", inheritable: bool = False, blocking: bool = True
    ) -> _Sockets:
        """Get LISTEN sockets in one round trip: all of them, in the order of ``wanted``, or none. The caller owns them.

        ``wanted`` has ``("127.0.0.1", 8000)`` tuples, addresses, or ``ListenerSpec(address, Options(…))``. ``owner``
        labels the claim: a listener is closed when its last owner releases it. The sockets are close-on-exec unless
        ``inheritable``. With ``blocking=False``, they are in non-blocking mode, for servers that select first. A
        warning of the binder is issued as a RuntimeWarning.

        Raises BindError if one of them cannot be bound, RemoteProtocolError if a received socket is not the one that
        was asked for, NotAllowed, LimitReached, BinderUnavailable, BinderTimeout.
        """
        specs = [_spec(item) for item in wanted]
        return _set_mode(self._bind(specs, owner, inheritable, stacklevel=3), blocking)

    def check(self, wanted: Iterable[BindTarget], *, owner: str = "") -> None:
        """Ask whether ``bind`` would be granted now. Creates nothing; raises what ``bind`` would raise."""
        params = [ListenerParams.of(_spec(item), owner) for item in wanted]
        if params:
            self._ask("check", params)

    def list(self) -> _Statuses:
        """Return every listener of the binder, in the order of their creation."""
        return decode_result(self._ask("list", []), _Statuses)

    def status(self, *, fresh: bool = True) -> BinderStatus:
        """Return the state of the binder, its counters since it started, and the health of its listeners.

        The binder looks for the holders of all listeners first, which costs the host some CPU. Without ``fresh`` it
        answers with those of its last look.
        """
        return decode_result(self._ask("status", [] if fresh else [StatusParams(fresh=False)]), BinderStatus)

    def release(self, wanted: Iterable[BindTarget], *, owner: str = "") -> _Releases:
        """Give up the claim of ``owner``. A listener that has no claim left is shut down for every holder.

        The outcome of each is ``closed``, ``kept`` (another claim remains: see ``owners``) or ``absent``.
        """
        params = [ListenerParams.of(_spec(item), owner) for item in wanted]
        return decode_result(self._ask("release", params), _Releases) if params else []

    def move(self, moves: Iterable[tuple[str, int]]) -> _Moves:
        """Give the claims and names of each owner, ``("haproxy@web:107", 33)``, to the same label of another uid.

        Root and the binder's own user may: a service whose user has changed keeps its listeners.
        """
        params = [messages.MoveParams(owner, uid) for owner, uid in moves]
        return decode_result(self._ask("move", params), _Moves) if params else []

    def upgrade(self) -> Upgrade:
        """Make the binder execute the installed version. The PID, the listeners and the connections stay the same.

        Returns when the new code has shown that it can start; from then on it answers ``hello``. Raises RequestError
        with the reason if it cannot start; then the running binder goes on.
        """
        return decode_result(self._ask("upgrade", []), Upgrade)

    def _bind(self, specs: Sequence[ListenerSpec], owner: str, inheritable: bool, stacklevel: int) -> _Sockets:
        sockets: list[SharedListener] = []
        try:
            while len(sockets) < len(specs):
                # A binder answers for the whole list. The Ruby program binds only the first of it and answers true.
                rest = specs[len(sockets) :]
                deadline = time.monotonic() + self.timeout
                params = [ListenerParams.of(spec, owner) for spec in rest]
                reply = self._connection.ask("bind", params, self.timeout, deadline, acknowledge=True)
                with Reception(self._connection, reply, len(rest)) as reception:
                    descriptors = reception.descriptors(self.timeout, deadline)
                    sockets += verify_all_received(descriptors, [spec.address for spec in rest[: len(descriptors)]])
                    for handoff in reception.handoffs:
                        if handoff.warning:
                            text = f"{handoff.address}: {handoff.warning}"
                            warnings.warn(text, RuntimeWarning, stacklevel=stacklevel)
                    if inheritable:
                        for sock in sockets:
                            sock.set_inheritable(True)
        except BaseException:
            close_all(sockets)
            raise
        return sockets

    def _ask(self, method: str, params: Sequence[object], deadline: float | None = None) -> Reply:
        return self._connection.ask(method, params, self.timeout, deadline or time.monotonic() + self.timeout)


def bind(
    host: str,
    port: int,
    *,
    backlog: int | None = None,
    v6only: bool | None = None,
    name: str | None = None,
    owner: str = "",
    inheritable: bool = False,
    blocking: bool = True,
    socket_path: str | os.PathLike[str] | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
    fallback: bool = False,
) -> SharedListener:
    """Get the LISTEN socket of a TCP address from the binder, which creates it if it does not exist yet.

    ``host`` is a numeric IPv4 or IPv6 address, ``port`` 0 to 65535 (0: the kernel chooses; give a ``name`` to get
    the same port again). ``backlog`` is the length of the accept queue in connections, by default
    net.core.somaxconn; ``v6only`` is IPV6_V6ONLY. ``owner`` labels your claim, for ``release``.
    ``socket_path`` defaults to $MULTIBINDER_SOCK, ``timeout`` is in seconds.

    The caller owns the socket: it is ready for ``accept()``, and close-on-exec unless ``inheritable``. Give
    ``blocking=False`` to servers that select before they accept: another copy may take the client in between.
    When you close the socket, the port stays open in the binder. Other processes may accept on it too, so a new copy
    of a server can start before the old one stops. If no binder is configured, ``fallback=True`` binds in this
    process and warns.

    Raises AddressError, BindError (``errno``), NotAllowed, LimitReached, BinderUnavailable, BinderTimeout,
    ConfigurationError.

        listener = multibinder.bind("127.0.0.1", 8000, owner="hello")
        connection, peer = listener.accept()
    """
    spec = ListenerSpec(TcpAddress.of(host, port), Options(backlog, v6only, name))
    [sock] = _bind_or_fall_back([spec], owner, inheritable, socket_path, timeout, fallback)
    sock.setblocking(blocking)
    return sock


def bind_many(
    wanted: Iterable[BindTarget],
    *,
    owner: str = "",
    inheritable: bool = False,
    blocking: bool = True,
    socket_path: str | os.PathLike[str] | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
    fallback: bool = False,
) -> list[SharedListener]:
    """Do what ``bind`` does for several addresses in one round trip: all of them, in the order of ``wanted``, or none.

    ``wanted`` has ``("127.0.0.1", 8000)`` tuples, addresses, or ``ListenerSpec(address, Options(…))``.
    """
    specs = [_spec(item) for item in wanted]
    return _set_mode(_bind_or_fall_back(specs, owner, inheritable, socket_path, timeout, fallback), blocking)


def _bind_or_fall_back(
    specs: Sequence[ListenerSpec],
    owner: str,
    inheritable: bool,
    socket_path: str | os.PathLike[str] | None,
    timeout: float,
    fallback: bool,
) -> list[SharedListener]:
    if fallback and not (socket_path or os.environ.get(SOCKET_VARIABLE)):
        warnings.warn(
            f"{SOCKET_VARIABLE} is not set: binding in this process, so a restart will refuse connections",
            RuntimeWarning,
            stacklevel=3,
        )
        return _bind_here(specs, inheritable)
    with Client(socket_path, timeout=timeout) as client:
        return client._bind(specs, owner, inheritable, stacklevel=4)


def _bind_here(specs: Sequence[ListenerSpec], inheritable: bool) -> list[SharedListener]:
    with contextlib.ExitStack() as undo:
        sockets: list[SharedListener] = []
        for spec in specs:
            try:
                kind = kinds.of_address(spec.address)
                sock = undo.enter_context(kind.open(spec.address, spec.options))
                kind.make_ready(sock, spec.options.backlog)
            except OSError as error:
                number = error.errno or 0
                raise BindError(
                    f"Could not bind: {spec.address}: {os.strerror(number)}",
                    messages.COULD_NOT_BIND,
                    {"errno": number, "errname": errname(number), "address": str(spec.address)},
                ) from error
            sock.set_inheritable(inheritable)
            sockets.append(undo.enter_context(SharedListener(fileno=sock.detach())))
        undo.pop_all()
    return sockets


def _set_mode(sockets: list[SharedListener], blocking: bool) -> list[SharedListener]:
    for sock in sockets:
        sock.setblocking(blocking)
    return sockets


def _spec(item: BindTarget) -> ListenerSpec:
    match item:
        case ListenerSpec():
            return item
        case Address():
            return ListenerSpec(item)
        case (str() as host, int() as port):
            return ListenerSpec(TcpAddress.of(host, port))
    raise LocalProtocolError(f"{item!r} is neither an address, a (host, port) tuple nor a ListenerSpec")
