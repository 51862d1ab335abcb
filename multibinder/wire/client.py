"""The client's side of the control socket, and the three functions most programs need of it."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import time
import warnings
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TypeVar

import msgspec

from multibinder.wire import kinds, messages, transport
from multibinder.wire.addresses import Address, TcpAddress
from multibinder.wire.decoder import Decoder
from multibinder.wire.errors import (
    BindError,
    BinderTimeout,
    BinderUnavailable,
    ConfigurationError,
    LimitReached,
    LocalProtocolError,
    NotAllowed,
    RemoteProtocolError,
    RequestError,
    errname,
)
from multibinder.wire.listener import SharedListener, close_all, verify_all_received
from multibinder.wire.messages import BindResult, Handoff, Hello, ListenerParams, ListenerSpec, Released, Reply, Upgrade
from multibinder.wire.options import Options
from multibinder.wire.status import BinderStatus, ListenerStatus
from multibinder.wire.transport import MAX_DESCRIPTORS

#: Where the control socket is, for every client and for ``multibinder serve``.
SOCKET_VARIABLE = "MULTIBINDER_SOCK"
DEFAULT_TIMEOUT_S = 10.0

#: The binder is trusted, but a bug there must not fill our memory: 10,000 listeners in a list have about 3 MB.
_REPLY_LIMIT = 64 * 1024 * 1024

#: What a client may ask for: ``(host, port)`` of a TCP listener, an address, or an address with options.
BindTarget = ListenerSpec | Address | tuple[str, int]
# Inside Client the name list means the method.
_Statuses = list[ListenerStatus]
_Releases = list[Released]
_Sockets = list[SharedListener]

_ERRORS = {
    messages.COULD_NOT_BIND: BindError,
    messages.LIMIT_REACHED: LimitReached,
    messages.NOT_ALLOWED: NotAllowed,
}
_reply = msgspec.json.Decoder(Reply)
T = TypeVar("T")


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
        self.socket_path = os.fspath(socket_path or os.environ.get(SOCKET_VARIABLE) or "")
        if not self.socket_path:
            raise ConfigurationError(
                f"{SOCKET_VARIABLE} is not set: set it to the path of the binder's control socket "
                "(as given to 'multibinder serve --socket'), or pass socket_path="
            )
        self.timeout = timeout
        self._ids = itertools.count(1)
        self._decoder = Decoder(_REPLY_LIMIT)
        self._descriptors: list[int] = []
        self._socket, self._waits_s = _connect(self.socket_path, timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. The sockets that came through it stay open: they are the caller's."""
        self._socket.close()
        transport.close_all(self._descriptors)
        self._descriptors.clear()

    def hello(self) -> Hello:
        """Who answers. A binder that does not know the method (the Ruby program) is reported as protocol 0."""
        try:
            reply = self._ask("hello", [])
        except RequestError as error:
            if error.code != messages.METHOD_NOT_FOUND:
                raise
            return Hello(name="unknown", capabilities=["bind"])
        return _result(reply, Hello)

    def bind(self, wanted: Iterable[BindTarget], *, owner: str = "", inheritable: bool = False) -> list[SharedListener]:
        """Get LISTEN sockets, all or none, in the order asked for, in one round trip. They are the caller's.

        ``wanted`` has ``("127.0.0.1", 8000)`` tuples, addresses, or ``ListenerSpec(address, Options(…))``. ``owner``
        labels the claim: a listener goes when its last owner releases it. The sockets are close-on-exec unless
        ``inheritable``. Warnings of the binder come as RuntimeWarning.

        Raises BindError if one of them cannot be bound, NotAllowed, LimitReached, BinderUnavailable,
        BinderTimeout, RemoteProtocolError if what came is not what was asked for.
        """
        return self._bind([_spec(item) for item in wanted], owner, inheritable, stacklevel=3)

    def check(self, wanted: Iterable[BindTarget], *, owner: str = "") -> None:
        """Ask whether ``bind`` would be granted now. Creates nothing; raises what ``bind`` would raise."""
        params = [ListenerParams.of(_spec(item), owner) for item in wanted]
        if params:
            self._ask("check", params)

    def list(self) -> _Statuses:
        """Every listener of the binder, in the order of their creation."""
        return _result(self._ask("list", []), _Statuses)

    def status(self) -> BinderStatus:
        """The binder itself, what happened since it started, and how its listeners fare."""
        return _result(self._ask("status", []), BinderStatus)

    def release(self, wanted: Iterable[BindTarget], *, owner: str = "") -> _Releases:
        """Give up the claim of ``owner``. A listener without any claim left is shut down for every holder.

        The outcome of each: ``closed``, ``kept`` (somebody else's claim remains: see ``owners``), ``absent``.
        """
        params = [ListenerParams.of(_spec(item), owner) for item in wanted]
        return _result(self._ask("release", params), _Releases) if params else []

    def upgrade(self) -> Upgrade:
        """Have the binder become the version that is installed now: same PID, same listeners, same connections.

        Returns when the new code has shown that it can start, and ``hello`` is answered by it from then on. Raises
        RequestError with the reason when it cannot: then the running binder goes on.
        """
        return _result(self._ask("upgrade", []), Upgrade)

    def _bind(self, specs: Sequence[ListenerSpec], owner: str, inheritable: bool, stacklevel: int) -> _Sockets:
        sockets: list[SharedListener] = []
        try:
            while len(sockets) < len(specs):
                # Once, but for the Ruby program's server: that binds the first of a list and answers true.
                rest = specs[len(sockets) :]
                deadline = time.monotonic() + self.timeout
                reply = self._ask("bind", [ListenerParams.of(spec, owner) for spec in rest], deadline)
                descriptors, handoffs = self._collect(reply, rest, deadline)
                sockets += verify_all_received(descriptors, [spec.address for spec in rest[: len(descriptors)]])
                for handoff in handoffs:
                    if handoff.warning:
                        warnings.warn(f"{handoff.address}: {handoff.warning}", RuntimeWarning, stacklevel=stacklevel)
            if inheritable:
                for sock in sockets:
                    sock.set_inheritable(True)
        except BaseException:
            close_all(sockets)
            raise
        return sockets

    def _ask(self, method: str, params: Sequence[ListenerParams], deadline: float | None = None) -> Reply:
        request_id = str(next(self._ids))
        deadline = deadline or time.monotonic() + self.timeout
        try:
            self._send(messages.encode_request(method, request_id, list(params)), deadline)
            reply = self._next_reply(deadline)
        except TimeoutError as error:
            raise BinderTimeout(
                f"the binder at {self.socket_path} did not answer '{method}' within {self.timeout:g} s"
            ) from error
        if reply.error is not None:
            kind = _ERRORS.get(reply.error.code, RequestError)
            raise kind(reply.error.message, reply.error.code, reply.error.data)
        if reply.id != request_id:
            raise RemoteProtocolError(f"asked with id {request_id}, answered with id {reply.id!r}")
        return reply

    def _send(self, request: bytes, deadline: float) -> None:
        rest = memoryview(request)
        while rest:
            self._wait_until(deadline)
            try:
                rest = rest[transport.send(self._socket, rest) :]
            except BlockingIOError as error:
                raise TimeoutError from error
            except (BrokenPipeError, ConnectionResetError):
                # The binder closed its end. What it said before that is the better message, and is read next.
                return

    def _wait_until(self, deadline: float) -> None:
        """Let the next call on the socket block until then. A twentieth more is near enough, and saves system calls."""
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        if not left_s <= self._waits_s <= left_s * 1.05:
            _limit_waits(self._socket, left_s)
            self._waits_s = left_s

    def _next_reply(self, deadline: float) -> Reply:
        while (text := self._decoder.next_message()) is None:
            self._wait_until(deadline)
            try:
                arrived, descriptors = transport.receive(self._socket)
            except BlockingIOError as error:
                raise TimeoutError from error
            except ConnectionResetError:
                arrived, descriptors = b"", []
            if not arrived:
                raise BinderUnavailable(f"the binder at {self.socket_path} closed the connection without an answer")
            self._descriptors += descriptors
            self._decoder.feed(arrived)
        try:
            return _reply.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RemoteProtocolError(f"not a JSON-RPC reply: {text[:80]!r} ({error})") from error

    def _collect(
        self, reply: Reply, specs: Sequence[ListenerSpec], deadline: float
    ) -> tuple[Sequence[int], Sequence[Handoff]]:
        """The descriptors that belong to a reply to ``bind``, which the caller owns, and what is said of them."""
        from_ruby = bytes(reply.result) == b"true"
        result = BindResult([], 1) if from_ruby else _result(reply, BindResult)
        if not from_ruby:
            if result.descriptors != len(specs):
                raise RemoteProtocolError(f"asked for {len(specs)} listeners, {result.descriptors} were announced")
            try:
                for _ in range(MAX_DESCRIPTORS, result.descriptors, MAX_DESCRIPTORS):
                    self._next_reply(deadline)
            except TimeoutError as error:
                raise BinderTimeout(
                    f"{len(self._descriptors)} of {result.descriptors} descriptors came from {self.socket_path} "
                    f"within {self.timeout:g} s"
                ) from error
        descriptors, self._descriptors = self._descriptors, []
        if len(descriptors) != result.descriptors:
            transport.close_all(descriptors)
            raise RemoteProtocolError(
                f"asked for {len(specs)} listeners; {result.descriptors} were announced, {len(descriptors)} came"
            )
        return descriptors, result.listeners


def bind(
    host: str,
    port: int,
    *,
    backlog: int | None = None,
    v6only: bool | None = None,
    name: str | None = None,
    owner: str = "",
    inheritable: bool = False,
    socket_path: str | os.PathLike[str] | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
    fallback: bool = False,
) -> socket.socket:
    """Get the LISTEN socket of a TCP address from the binder; it is made if there is none yet.

    ``host`` is a numeric IPv4 or IPv6 address, ``port`` 0 to 65535 (0: the kernel chooses; give a ``name`` to get
    the same one again). ``backlog`` is the length of the accept queue in connections, default what
    net.core.somaxconn allows; ``v6only`` is IPV6_V6ONLY. ``owner`` labels your claim, for ``release``.
    ``socket_path`` defaults to $MULTIBINDER_SOCK, ``timeout`` is in seconds.

    The socket is yours: ready for ``accept()``, close-on-exec unless ``inheritable``; close it when done, and the
    port stays open in the binder. Other processes may accept on it too: that is how a new copy of a server starts
    before the old one stops. Where no binder is configured, ``fallback=True`` binds here and warns.

    Raises AddressError, BindError (``errno``), NotAllowed, LimitReached, BinderUnavailable, BinderTimeout,
    ConfigurationError.

        listener = multibinder.bind("127.0.0.1", 8000, owner="hello")
        connection, peer = listener.accept()
    """
    spec = ListenerSpec(TcpAddress.of(host, port), Options(backlog, v6only, name))
    [sock] = _get([spec], owner, inheritable, socket_path, timeout, fallback)
    return sock


def bind_many(
    wanted: Iterable[BindTarget],
    *,
    owner: str = "",
    inheritable: bool = False,
    socket_path: str | os.PathLike[str] | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
    fallback: bool = False,
) -> list[socket.socket]:
    """Like ``bind`` for several addresses in one round trip: all of them, in the order asked for, or none.

    ``wanted`` has ``("127.0.0.1", 8000)`` tuples, addresses, or ``ListenerSpec(address, Options(…))``.
    """
    return _get([_spec(item) for item in wanted], owner, inheritable, socket_path, timeout, fallback)


def _get(
    specs: Sequence[ListenerSpec],
    owner: str,
    inheritable: bool,
    socket_path: str | os.PathLike[str] | None,
    timeout: float,
    fallback: bool,
) -> list[socket.socket]:
    if fallback and not (socket_path or os.environ.get(SOCKET_VARIABLE)):
        warnings.warn(
            f"{SOCKET_VARIABLE} is not set: binding in this process, so a restart will refuse connections",
            RuntimeWarning,
            stacklevel=3,
        )
        return _bind_here(specs, inheritable)
    with Client(socket_path, timeout=timeout) as client:
        return list(client._bind(specs, owner, inheritable, stacklevel=4))


def _bind_here(specs: Sequence[ListenerSpec], inheritable: bool) -> list[socket.socket]:
    with contextlib.ExitStack() as undo:
        sockets: list[socket.socket] = []
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
            sockets.append(sock)
        undo.pop_all()
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


def _result(reply: Reply, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(reply.result, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"a result that makes no sense: {bytes(reply.result)[:80]!r} ({error})") from error


def _connect(path: str, timeout: float) -> tuple[socket.socket, float]:
    """A connected socket in blocking mode, and how long it waits, in seconds."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A non-blocking connect() fails at once when the binder's queue is full; a blocking one waits for its turn,
        # as long as the send timeout says (unix_stream_connect() in net/unix/af_unix.c).
        _limit_waits(sock, timeout)
        sock.connect(path)
    except BlockingIOError as error:
        sock.close()
        raise BinderTimeout(f"the binder at {path} did not accept the connection within {timeout:g} s") from error
    except OSError as error:
        sock.close()
        raise _unavailable(path, error) from error
    return sock, timeout


def _limit_waits(sock: socket.socket, seconds: float) -> None:
    """SO_SNDTIMEO and SO_RCVTIMEO (socket(7)): past them a blocking call fails with EAGAIN."""
    timeval = struct.pack("@ll", *divmod(max(1, int(seconds * 1e6)), 10**6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)


def _unavailable(path: str, error: OSError) -> BinderUnavailable:
    why = {
        FileNotFoundError: "there is no such socket; is 'multibinder serve' running?",
        ConnectionRefusedError: "nobody listens there any more; is 'multibinder serve' running?",
        PermissionError: "permission denied; the binder's --mode and --group say who may connect",
    }.get(type(error), str(error.strerror or error))
    return BinderUnavailable(f"cannot reach the binder at {path}: {why}")
