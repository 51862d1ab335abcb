"""The client of a binder."""

from __future__ import annotations

import builtins
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from multibinder.kernel.socket_options import cookie_of
from multibinder.wire import kinds, messages
from multibinder.wire.adopt_params import Adopted
from multibinder.wire.adoption import Offer, adopt_all
from multibinder.wire.arguments import (
    DEFAULT_TIMEOUT_S,
    BindTarget,
    ReleaseTarget,
    control_path,
    drain_s,
    specs_of,
    timeout_s,
    wait_s,
)
from multibinder.wire.bind_exchange import BindExchange, params_of
from multibinder.wire.connection import Connection
from multibinder.wire.errors import LocalProtocolError, RequestError
from multibinder.wire.listener import close_all, set_mode
from multibinder.wire.messages import Hello, ListenerSpec, Moved, Released, Reply, Upgrade
from multibinder.wire.move_params import MoveParams
from multibinder.wire.old_binders import is_unknown, old_binders_explained, without_shards
from multibinder.wire.options import check_optional_owner, check_owner
from multibinder.wire.reception import decode_result
from multibinder.wire.release_params import DRAIN, LEAVE_OPEN, release_params
from multibinder.wire.session import Session
from multibinder.wire.shared_listener import SharedListener
from multibinder.wire.spread import Shards
from multibinder.wire.status import BinderStatus, ListenerStatus, has_claim
from multibinder.wire.status_params import StatusParams

#: The stack frames between ``Client._bind`` and the warning.
_FRAMES = 4


class Client:  # which has a method ``list``: hence builtins.list
    """A connection to a binder. Use it as a context manager; one call at a time.

    ``socket_path`` defaults to $MULTIBINDER_SOCK; ``timeout`` is in seconds, for each call as a whole (None: no
    limit). ``wait`` is how many seconds to wait, before that, for a binder that is not there. The constructor connects,
    and raises ConfigurationError or BinderUnavailable.

        with multibinder.Client() as binder:
            for listener in binder.list():
                print(listener.address, listener.owners)

    If the binder was restarted, or has ended the connection, the next call connects again. A call that may already
    have been carried out is repeated only if that changes nothing: ``release``, ``move`` and ``upgrade`` are not.

    LocalProtocolError: two threads call at the same time, or the process is a fork of the one that made the client.
    """

    def __init__(
        self,
        socket_path: str | os.PathLike[str] | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        wait: float = 0.0,
    ) -> None:
        self._timeout_s = timeout_s(timeout)
        self._session = Session(control_path(socket_path), self._timeout_s, wait_s(wait))

    @property
    def timeout(self) -> float:
        """The limit of each call, in seconds; math.inf for none."""
        return self._timeout_s

    @property
    def socket_path(self) -> str:
        """The path of the control socket."""
        return self._session.path

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. The sockets that were received through it stay open, because the caller owns them."""
        self._session.close()

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
        self,
        wanted: Iterable[BindTarget],
        *,
        shards: Shards | None = None,
        netns: str = "",
        owner: str = "",
        inheritable: bool = False,
        blocking: bool = True,
    ) -> builtins.list[SharedListener]:
        """Get listeners in one round trip: all of them, in the order of ``wanted``, or none. The caller owns them.

        ``wanted``, ``shards`` and ``netns`` are those of ``multibinder.bind_many``. ``owner``
        labels the claim: a listener is closed when its last owner releases it. The sockets are close-on-exec unless
        ``inheritable``. With ``blocking=False``, they are in non-blocking mode, for servers that select first. A
        warning of the binder is issued as a RuntimeWarning.

        Raises BindError if one of them cannot be bound, RemoteProtocolError if a received socket is not the one that
        was asked for, NotAllowed, LimitReached, BinderUnavailable, BinderTimeout.
        """
        return set_mode(self._bind(specs_of(wanted, shards, netns), owner, inheritable, stacklevel=3), blocking)

    def check(
        self, wanted: Iterable[BindTarget], *, shards: Shards | None = None, netns: str = "", owner: str = ""
    ) -> None:
        """Ask whether ``bind`` would be granted now. Creates nothing; raises what ``bind`` would raise."""
        specs = specs_of(wanted, shards, netns)
        params = params_of(specs, owner)
        if params:
            with old_binders_explained(specs):
                self._ask("check", params)

    def list(self) -> builtins.list[ListenerStatus]:
        """Return every listener of the binder, in the order of their creation."""
        return decode_result(self._ask("list", []), builtins.list[ListenerStatus])

    def status(self, *, fresh: bool = True) -> BinderStatus:
        """Return the state of the binder, its counters since it started, and the health of its listeners.

        The binder looks for the holders of all listeners first, which costs the host some CPU. Without ``fresh`` it
        answers with those of its last look.
        """
        return decode_result(self._ask("status", [] if fresh else [StatusParams(fresh=False)]), BinderStatus)

    def release(
        self,
        wanted: Iterable[ReleaseTarget],
        *,
        netns: str = "",
        owner: str = "",
        drain: float = 0.0,
        leave_open: bool = False,
    ) -> builtins.list[Released]:
        """Give up the claim of ``owner``. A listener without a claim is shut down for every holder.

        The outcome of each is ``closed``, ``kept`` (another claim remains: see ``owners``) or ``absent``. ``drain``
        lets no client in, waits until holders have accepted those that wait, for this many seconds at most, and closes:
        ``reset`` clients waited. An address means all of its shards, what ``bind`` and ``list`` return one
        listener; ``netns`` is its namespace. With ``leave_open``, for root, the port stays open for its holders:
        ``left-open``.

        Raises LocalProtocolError, and releases nothing, if the binder is too old for these.
        """
        specs, seconds = specs_of(wanted, netns=netns, whole=True), drain_s(drain)
        check_optional_owner(owner)
        if not specs:
            return []
        if seconds:
            self._require(DRAIN, "drain")
        if leave_open:
            self._require(LEAVE_OPEN, "leave open")
        params = [release_params(spec, owner, seconds, leave_open=leave_open) for spec in specs]
        try:
            with old_binders_explained(specs):
                reply = self._ask("release", params, can_repeat=False, also_s=seconds)
        except LocalProtocolError as error:
            # A binder that knows no shards has none, and has done nothing.
            if not is_unknown(error.__cause__, "shards"):
                raise
            return self.release(list(map(without_shards, specs)), owner=owner, drain=seconds)
        return decode_result(reply, builtins.list[Released])

    def sync(
        self,
        owner: str,
        wanted: Iterable[BindTarget],
        *,
        shards: Shards | None = None,
        netns: str = "",
        drain: float = 0.0,
        inheritable: bool = False,
        blocking: bool = True,
    ) -> builtins.list[SharedListener]:
        """Make the listeners of ``owner`` exactly these: bind them, and release its claims on all others.

        Only claims of this user (or of the uid in ``label:uid``) are released. Returns and raises what ``bind`` does.
        Nothing is released unless all of them are bound: an address that collides with one to be released is refused.
        If an error is raised later, the claims on the new ones stay, and asking again completes the work. ``drain`` is
        that of ``release``.
        """
        return self._sync(specs_of(wanted, shards, netns), owner, drain, inheritable, blocking, stacklevel=4)

    def move(self, moves: Iterable[tuple[str, int]]) -> builtins.list[Moved]:
        """Give the claims and names of each owner, ``("haproxy@web:107", 33)``, to the same label of another uid.

        Root and the binder's own user may: a service whose user has changed keeps its listeners.
        """
        params = [MoveParams(owner, uid) for owner, uid in moves]
        return decode_result(self._ask("move", params, can_repeat=False), builtins.list[Moved]) if params else []

    def adopt(
        self,
        listeners: Iterable[Offer | tuple[ListenerSpec, socket.socket]],
        *,
        owner: str = "",
        before_sending: Callable[[int], object] | None = None,
    ) -> Sequence[Adopted]:
        """Let the binder hold listeners that another program has opened, each with the spec that describes it.

        Root and the binder's own user may. The binder keeps copies; the sockets stay the caller's. ``before_sending``
        is called with the binder's uid when the binder has allowed the request. All are adopted, or none: raises
        RequestError with the reason. ``multibinder adopt`` finds such listeners.
        """
        offers = [Offer(*each) for each in listeners]
        return adopt_all(self._session, offers, check_optional_owner(owner), before_sending, self._timeout_s)

    def upgrade(self) -> Upgrade:
        """Make the binder execute the installed version. The PID, the listeners and the connections stay the same.

        Returns when the new code has shown that it can start; from then on it answers ``hello``. Raises RequestError
        with the reason if it cannot start; then the running binder goes on.
        """
        return decode_result(self._ask("upgrade", [], can_repeat=False), Upgrade)

    def _bind(
        self, specs: Sequence[ListenerSpec], owner: str, inheritable: bool, stacklevel: int
    ) -> builtins.list[SharedListener]:
        """Do what ``bind`` does. ``stacklevel`` is that of the caller's line, for warnings."""

        exchange = BindExchange(specs, owner, inheritable, self._timeout_s, stacklevel + _FRAMES)
        with old_binders_explained(specs):
            return self._session.call(exchange, self._timeout_s, can_repeat=True) if specs else []

    def _sync(
        self,
        specs: Sequence[ListenerSpec],
        owner: str,
        drain: float,
        inheritable: bool,
        blocking: bool,
        stacklevel: int,
    ) -> builtins.list[SharedListener]:
        check_owner(owner)
        if drain_s(drain):
            self._require(DRAIN, "drain")
        sockets = self._bind(specs, owner, inheritable, stacklevel)
        try:
            # A listener that the binder repairs meanwhile gets another socket.
            bound = {(str(kinds.address_of(sock)), sock.shard) for sock in sockets if not sock.netns}
            cookies = {cookie_of(sock) for sock in sockets}
            label, uid = self._label_and_uid(owner)
            others = [
                each
                for each in self.list()
                if each.cookie not in cookies
                and (bool(each.netns) or (each.address, each.shard) not in bound)
                and has_claim(each, label, uid)
            ]
            self.release(others, owner=owner, drain=drain)
        except BaseException:
            close_all(sockets)
            raise
        return set_mode(sockets, blocking)

    def _require(self, capability: str, doing: str) -> None:
        if capability not in (hello := self.hello()).capabilities:
            raise LocalProtocolError(
                f"this binder ({hello.version}) cannot {doing} a listener: upgrade it ('multibinder upgrade'), or "
                f"release without {capability}"
            )

    def _label_and_uid(self, owner: str) -> tuple[str, int]:
        label, colon, uid = owner.rpartition(":")
        if colon:
            return label, int(uid)
        ours = self.hello().uid  # None: the binder is older, and cannot be in another user namespace
        return owner, os.geteuid() if ours is None else ours

    def _ask(self, method: str, params: Sequence[object], *, can_repeat: bool = True, also_s: float = 0.0) -> Reply:
        """Ask. The binder may take ``also_s`` seconds beside the timeout."""
        timeout_s = self._timeout_s + also_s

        def exchange(connection: Connection, deadline: float) -> Reply:
            return connection.ask(method, params, timeout_s, deadline)

        return self._session.call(exchange, timeout_s, can_repeat=can_repeat)
