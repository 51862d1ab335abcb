"""The listeners that the binder owns."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from multibinder.binder import events
from multibinder.binder.owner import Labels, Owner
from multibinder.binder.quotas import is_privileged
from multibinder.binder.records import Record
from multibinder.kernel.accept_queue import accept_queue
from multibinder.kernel.socket_options import cookie_of, inode_of
from multibinder.wire.address import Address, address_of
from multibinder.wire.errors import BindError, RequestError, errname
from multibinder.wire.listener import listen, open_listener
from multibinder.wire.messages import (
    COULD_NOT_BIND,
    LIMIT_REACHED,
    NOT_ALLOWED,
    ListenerSpec,
    ListenerStatus,
    Released,
)
from multibinder.wire.options import Options

#: What a listener is called on its way to our next self while nobody else has it.
_NOT_KEPT = "unkept"
#: What an FDNAME= may have (sd_notify(3)) and a file name too.
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-"

#: For users who are not privileged.
_SEARCH_EVERY_S = 10.0

#: Told of each listener whose record is not what it was.
Changed = Callable[[Sequence[Record]], None]

#: Finds a socket of ours that somebody else holds still, when its address turns out to be in use.
Recover = Callable[[Address], tuple[Record, socket.socket] | None]

#: The owner of a socket that came without a record: a socket unit's, say.
_INHERITED = str(Owner("inherited", 0))

#: Says in words who has an address, after the kernel refused it. Empty when nobody can be named.
WhoListens = Callable[[Address], str]


class Claim(msgspec.Struct):
    """One owner's: made with handoff number ``since``, and how many handoffs it rests on."""

    since: int
    handoffs: int = 0


class Listener(msgspec.Struct, eq=False):
    """A socket that the binder holds. The store alone opens and closes it.

    ``limit`` is what the kernel made of our last listen(); 0 before the first. ``safe``: whoever keeps our sockets has
    confirmed that it has this one. ``chosen``: the kernel chose the port. ``handed``: the last handoff, by
    time.monotonic(). ``foreign``: somebody has it whom our PID namespace does not show.
    """

    socket: socket.socket
    address: Address
    options: Options
    limit: int = 0
    claims: dict[Owner, Claim] = msgspec.field(default_factory=dict)
    safe: bool = False
    chosen: bool = False
    foreign: bool = False
    handoffs: int = 0
    handed: float = msgspec.field(default_factory=time.monotonic)
    repairs: int = 0
    repaired_at: float = 0.0
    created: float = msgspec.field(default_factory=time.time)


class Grant(msgspec.Struct, frozen=True):
    """One listener of one answer: what to say of it, and enough to take it back."""

    listener: Listener
    owner: Owner
    handoff: int
    created: bool
    warning: str | None

    @property
    def backlog(self) -> int:
        """The effective limit of the accept queue, in connections."""
        return self.listener.limit


class ListenerStore:
    """One key, one socket: equal addresses get the same socket. Nothing here waits on anybody.

    Holds up to ``limit`` listeners; one uid may have ``limit_per_uid`` claims, unless it is privileged.
    """

    def __init__(
        self,
        limit: int,
        who_listens: WhoListens,
        changed: Changed = lambda records: None,
        recover: Recover = lambda address: None,
        limit_per_uid: int = sys.maxsize,
    ) -> None:
        self._limit = limit
        self._limit_per_uid = limit_per_uid
        self._labels = Labels()
        self._search_again_at = 0.0
        self._changed = changed
        self._recover = recover
        self._who_listens = who_listens
        self._by_address: dict[Address, Listener] = {}
        self._by_name: dict[str, Listener] = {}

    def __len__(self) -> int:
        return len(self._by_address)

    def owner(self, label: str, uid: int) -> Owner:
        """Who claims something by that label. Raises RequestError if the label is another uid's; root, and the binder's
        own user, may use all of them, and the label stays whose it is."""
        holder = self._labels.holder(label)
        if holder is None or holder == uid:
            return Owner(label, uid)
        if is_privileged(uid):
            return Owner(label, holder)
        raise RequestError(
            f"the owner label {label} belongs to uid {holder}, not to uid {uid}; choose another label", NOT_ALLOWED
        )

    def find(self, spec: ListenerSpec) -> Listener | None:
        """The listener that a request for ``spec`` is about, if there is one already."""
        if spec.options.name and (named := self._by_name.get(spec.options.name)):
            return named
        return self._by_address.get(spec.address)

    def bind(self, specs: Sequence[ListenerSpec], owners: Sequence[Owner], *, foreign: bool = False) -> list[Grant]:
        """All of them, or none: raises BindError or RequestError, and then nothing has changed. ``foreign``: for a
        process of another PID namespace."""
        opened: list[Listener] = []
        try:
            found = self._find_or_open(specs, owners, opened)
            for listener, created in found:
                if created or not listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    self._listen(listener)
        except RequestError:
            _close_sockets(opened)
            raise
        grants: list[Grant] = []
        changed: list[Listener] = []
        for (listener, created), spec, owner in zip(found, specs, owners, strict=True):
            before = listener.options
            if created:
                self._add(listener)
            else:
                self._refresh(listener, spec.options)
            if created or owner not in listener.claims or listener.options is not before or foreign > listener.foreign:
                changed.append(listener)
            listener.foreign |= foreign
            grants.append(self._grant(listener, created, owner))
        if changed:
            self._changed([record_of(listener) for listener in changed])
        return grants

    def check(self, specs: Sequence[ListenerSpec], owners: Sequence[Owner]) -> None:
        """Raise what ``bind`` would raise. What it opens is never listened on, and closed again."""
        opened: list[Listener] = []
        try:
            self._find_or_open(specs, owners, opened)
        finally:
            _close_sockets(opened)

    def take_back(self, grants: Sequence[Grant]) -> None:
        """The answer with these never arrived. What it alone had changed is as before."""
        for grant in grants:
            listener = grant.listener
            claim = listener.claims.get(grant.owner)
            if claim is None or claim.since > grant.handoff:
                continue  # released since
            claim.handoffs -= 1
            if claim.handoffs:
                continue
            self._disclaim(listener, grant.owner)
            if listener.claims:
                self._changed([record_of(listener)])
            else:
                events.info("withdrawn", address=listener.address, why="the client went away before its answer")
                self._close(listener)

    def release(self, spec: ListenerSpec, owner: Owner) -> Released:
        """Drop the owner's claim; without any claim left, close the port for every holder. Root, and the binder's own
        user, drop the claims of all who have no label when they give none."""
        listener = self.find(spec)
        if listener is None or not spec.address.matches(listener.address):
            return Released(str(spec.address), "absent")
        address = str(listener.address)
        everybody = not owner.label and is_privileged(owner.uid)
        for claimant in list(listener.claims):
            if claimant == owner or (everybody and not claimant.label):
                self._disclaim(listener, claimant)
        if listener.claims:
            self._changed([record_of(listener)])
            return Released(address, "kept", labels_of(listener))
        self._close(listener)
        return Released(address, "closed")

    def statuses(self, listeners: Iterable[Listener] | None = None) -> list[ListenerStatus]:
        return [_status(listener) for listener in (self._by_address.values() if listeners is None else listeners)]

    def adopt(self, sock: socket.socket, record: Record | None) -> None:
        """Take over a LISTEN socket of before: believe the socket, and the record about the rest. Takes the socket.

        One that is here already (systemd may give the same twice) is one listener; one that was released is closed.
        Raises BindError if it does not listen any more, and cannot again; then it is the caller's still.
        """
        if record is not None and record.released:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
            return
        address = address_of(sock)
        assert address is not None  # noqa: S101 (inherit.py lets nothing else through)
        known = self._by_address.get(address)
        if known is not None:
            events.warning("inherited-twice", address=address, done="closed one")
            sock.close()
            return
        v6only = None
        if sock.family == socket.AF_INET6:
            v6only = bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
        record = record or Record(str(address), 0, claims={_INHERITED: 1}, created=time.time())
        listener = Listener(
            sock,
            address,
            Options(record.backlog, v6only, record.name),
            limit=accept_queue(sock).limit,
            claims={Owner.parse(owner): Claim(0, handoffs) for owner, handoffs in record.claims.items()},
            handoffs=record.handoffs,
            created=record.created,
            chosen=record.chosen,
            foreign=record.foreign,
        )
        if not accept_queue(sock).listening:
            listener.limit = listener.limit or 1
            self._listen(listener)
        self._add(listener)
        for owner in listener.claims:
            self._labels.add(owner)

    def records(self) -> list[Record]:
        return [record_of(listener) for listener in self._by_address.values()]

    def repair(self) -> None:
        """Undo what other holders did: make every listener listen again, with its own backlog, or with more of it when
        net.core.somaxconn was raised. One look costs some microseconds for each."""
        allowed = _somaxconn()
        for listener in self._by_address.values():
            try:
                queue = accept_queue(listener.socket)
                if not queue.listening:
                    self._listen(listener)
                elif queue.limit == listener.limit < min(listener.options.backlog or allowed, allowed):
                    listen(listener.socket, listener.options.backlog)
                    listener.limit = accept_queue(listener.socket).limit
                    events.info("backlog-raised", address=listener.address, was=queue.limit, now=listener.limit)
                elif queue.limit != listener.limit:
                    listen(listener.socket, listener.options.backlog)
                    listener.limit = accept_queue(listener.socket).limit
                    self._note_repair(listener)
                    events.warning("backlog-restored", address=listener.address, was=queue.limit, now=listener.limit)
            except (OSError, BindError) as error:
                events.error("cannot-repair", address=listener.address, why=error)

    def listeners(self) -> list[Listener]:
        return list(self._by_address.values())

    def leave(self) -> list[tuple[str, int]]:
        """Give all listeners away, by their ``kept_name`` if they are kept; the descriptors are the caller's now."""
        descriptors = [
            kept_name(listener) if listener.safe else (_NOT_KEPT, listener.socket.fileno())
            for listener in self._by_address.values()
        ]
        for listener in self._by_address.values():
            listener.socket.detach()
        self._by_address.clear()
        self._by_name.clear()
        return descriptors

    def close(self) -> None:
        """Close our descriptors. Where another holder is left, the port stays open for it."""
        _close_sockets(self._by_address.values())
        self._by_address.clear()
        self._by_name.clear()

    def _find_or_open(
        self, specs: Sequence[ListenerSpec], owners: Sequence[Owner], opened: list[Listener]
    ) -> list[tuple[Listener, bool]]:
        """For each spec its listener and whether it is new. New ones are bound and do not listen yet; they are in
        ``opened``, also when an error is raised."""
        bound: dict[Address, Listener] = {}
        named: dict[str, Listener] = {}
        room = self._limit - len(self)
        uid = owners[0].uid
        more = sys.maxsize if is_privileged(uid) else self._limit_per_uid - self._labels.claims_of(uid)
        found = []
        for spec, owner in zip(specs, owners, strict=True):
            listener = named.get(spec.options.name or "") or self.find(spec) or bound.get(spec.address)
            created = listener is None
            if listener is None or owner not in listener.claims:
                if more <= 0:
                    raise RequestError(
                        f"Could not bind: {spec.address}: uid {uid} has its limit of {self._limit_per_uid} listeners "
                        "(multibinder serve --max-listeners-per-uid)",
                        LIMIT_REACHED,
                        {"limit": "listeners_per_uid"},
                    )
                more -= 1
            if listener is None:
                if not room:
                    raise RequestError(
                        f"Could not bind: {spec.address}: this binder holds its limit of {self._limit} listeners "
                        "(multibinder serve --max-listeners)",
                        LIMIT_REACHED,
                        {"limit": "listeners"},
                    )
                room -= 1
                listener, created = self._open_or_recover(spec, uid)
                if created:
                    opened.append(listener)
                    bound[listener.address] = listener
                else:
                    _check_same(listener, spec)
            else:
                _check_same(listener, spec)
            if spec.options.name:
                named[spec.options.name] = listener
            found.append((listener, created))
        return found

    def _open_or_recover(self, spec: ListenerSpec, uid: int) -> tuple[Listener, bool]:
        try:
            return self._open(spec), True
        except OSError as error:
            if error.errno != errno.EADDRINUSE or (found := self._recover(spec.address)) is None:
                raise self._refusal(spec.address, error, uid) from error
            record, sock = found
            self.adopt(sock, record)
            return self._by_address[spec.address], False

    def _open(self, spec: ListenerSpec) -> Listener:
        sock = open_listener(spec)
        bound = address_of(sock)
        assert bound is not None  # noqa: S101 (open_listener makes nothing else)
        v6only = None
        if sock.family == socket.AF_INET6:
            v6only = bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
        options = msgspec.structs.replace(spec.options, v6only=v6only) if v6only is not None else spec.options
        return Listener(sock, bound, options, chosen=not spec.address.port)

    def _add(self, listener: Listener) -> None:
        self._by_address[listener.address] = listener
        if listener.options.name:
            self._by_name[listener.options.name] = listener

    def _grant(self, listener: Listener, created: bool, owner: Owner) -> Grant:
        listener.handoffs += 1
        listener.handed = time.monotonic()
        claim = listener.claims.get(owner)
        if claim is None:
            claim = listener.claims[owner] = Claim(listener.handoffs)
            self._labels.add(owner)
        claim.handoffs += 1
        wanted = listener.options.backlog
        warning = None
        if wanted is not None and listener.limit < wanted:
            warning = (
                f"a backlog of {wanted} was asked for, but the kernel allows {listener.limit}; "
                f"raise it with 'sysctl -w net.core.somaxconn={wanted}' and ask again"
            )
        return Grant(listener, owner, listener.handoffs, created, warning)

    def close_orphan(self, listener: Listener) -> None:
        """Close a port whose clients wait for nobody: they are reset (inet_csk_listen_stop() in the kernel's
        net/ipv4/inet_connection_sock.c)."""
        self._close(listener)

    def _disclaim(self, listener: Listener, owner: Owner) -> None:
        del listener.claims[owner]
        self._labels.remove(owner)

    def _close(self, listener: Listener) -> None:
        for owner in list(listener.claims):
            self._disclaim(listener, owner)
        # First in writing: a socket that turns up again after a crash in between must not be believed.
        self._changed([msgspec.structs.replace(record_of(listener), released=True)])
        # Other holders have copies: an old HAProxy worker keeps its own until it has drained. Only shutdown() ends
        # listening for all of them (inet_shutdown() in net/ipv4/af_inet.c), so that new clients are refused at once.
        try:
            listener.socket.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # somebody has shut it down before us
                events.warning("shutdown-failed", address=listener.address, error=error.strerror)
        listener.socket.close()
        self._by_address.pop(listener.address, None)
        if listener.options.name:
            self._by_name.pop(listener.options.name, None)

    def _listen(self, listener: Listener) -> None:
        """Start to listen, or again after a holder's shutdown(). Raises BindError."""
        repaired = bool(listener.limit)
        try:
            if repaired:
                _bind_again(listener)
            listen(listener.socket, listener.options.backlog)
        except OSError as error:
            raise self._refusal(listener.address, error) from error
        listener.limit = accept_queue(listener.socket).limit
        if repaired:
            self._note_repair(listener)
            events.warning("repaired", address=listener.address, why="a holder had shut the socket down")

    def _note_repair(self, listener: Listener) -> None:
        listener.repairs += 1
        listener.repaired_at = time.time()

    def _refresh(self, listener: Listener, options: Options) -> None:
        """Apply what can change to the live socket, and undo what another holder did to it."""
        wanted = options.backlog if options.backlog is not None else listener.options.backlog
        # Each time: a holder may have called listen(), and net.core.somaxconn may have changed.
        listen(listener.socket, wanted)
        listener.limit = accept_queue(listener.socket).limit
        if options.name or wanted != listener.options.backlog:
            name = listener.options.name or options.name
            listener.options = msgspec.structs.replace(listener.options, backlog=wanted, name=name)
            self._add(listener)

    def _may_search(self, uid: int) -> bool:
        """Whether /proc may be searched for this uid's sake: on a large host that takes a tenth of a second, and others
        wait."""
        now = time.monotonic()
        if not is_privileged(uid) and now < self._search_again_at:
            return False
        self._search_again_at = now + _SEARCH_EVERY_S
        return True

    def _refusal(self, address: Address, error: OSError, uid: int = 0) -> BindError:
        number = error.errno or 0
        may_search = number == errno.EADDRINUSE and self._may_search(uid)
        sentence = (
            f"Could not bind: {address}: {_explain(address, number, self._who_listens if may_search else _nobody)}"
        )
        return BindError(
            sentence, COULD_NOT_BIND, {"errno": number, "errname": errname(number), "address": str(address)}
        )


def _nobody(address: Address) -> str:
    return ""


def _close_sockets(listeners: Iterable[Listener]) -> None:
    for listener in listeners:
        listener.socket.close()


def _bind_again(listener: Listener) -> None:
    # A port that the kernel once chose itself is given up when the socket stops listening (inet_put_port() without
    # SOCK_BINDPORT_LOCK), though getsockname() goes on to show it; the next listen() would choose another.
    try:
        listener.socket.bind(listener.address.sockaddr)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: it has its port still
            raise


def _check_same(listener: Listener, spec: ListenerSpec) -> None:
    """What cannot change after bind() must be what it is; BindError names both values."""
    has, wants = listener.options, spec.options
    for what, old, new in (
        ("address", listener.address, spec.address if not spec.address.matches(listener.address) else None),
        ("v6only", has.v6only, wants.v6only),
        ("name", has.name, wants.name),
    ):
        if new is None or new == old or old is None:
            continue
        raise BindError(
            f"Could not bind: {spec}: the listener exists with {what} {old}, "
            f"and {new} was asked for; it cannot change while the socket lives. Release it first, or ask for the same",
            COULD_NOT_BIND,
            {"errno": errno.EINVAL, "errname": "EINVAL", "address": str(spec.address)},
        )


def _status(listener: Listener) -> ListenerStatus:
    return ListenerStatus(
        address=str(listener.address),
        name=listener.options.name,
        owners=labels_of(listener),
        backlog=accept_queue(listener.socket).limit,
        backlog_requested=listener.options.backlog,
        v6only=listener.options.v6only,
        handoffs=listener.handoffs,
        created=listener.created,
        cookie=cookie_of(listener.socket),
    )


def labels_of(listener: Listener) -> list[str]:
    """The owners' labels, each once; the empty one stands for all that gave none."""
    return list(dict.fromkeys(owner.label for owner in listener.claims))


def kept_name(listener: Listener) -> tuple[str, int]:
    """A name that no other socket will ever have, and the descriptor, which stays the listener's."""
    return name_of(cookie_of(listener.socket)), listener.socket.fileno()


def name_of(cookie: int) -> str:
    """As short as can be: the names of all descriptors must fit into one string of the environment (LISTEN_FDNAMES),
    which has at most 128 KiB (execve(2), MAX_ARG_STRLEN). Five digits and a colon do for 20,000 listeners."""
    digits = ""
    while cookie:
        cookie, digit = divmod(cookie, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits


def record_of(listener: Listener) -> Record:
    return Record(
        address=str(listener.address),
        cookie=cookie_of(listener.socket),
        inode=inode_of(listener.socket),
        claims={str(owner): claim.handoffs for owner, claim in listener.claims.items()},
        name=listener.options.name,
        backlog=listener.options.backlog,
        handoffs=listener.handoffs,
        created=listener.created,
        chosen=listener.chosen,
        foreign=listener.foreign,
    )


def _explain(address: Address, number: int, who_listens: WhoListens) -> str:
    """The kernel's word for a refusal, its cause where it can be found, and the remedy."""
    reason = os.strerror(number).lower()
    if number == errno.EADDRINUSE:
        who = who_listens(address)
        whom = f", by {who}; stop it" if who else "; find who has it ('ss -ltnp', as root)"
        return f"{reason}{whom} or choose another port"
    if number == errno.EACCES:
        first = _first_unprivileged_port()
        return (
            f"{reason}: a port below {first} needs CAP_NET_BIND_SERVICE in the binder "
            "(AmbientCapabilities= in its unit), or a lower net.ipv4.ip_unprivileged_port_start"
        )
    if number == errno.EADDRNOTAVAIL:
        return (
            f"{reason}: no interface of this host has {address.host}; for an address that moves between hosts "
            "set net.ipv4.ip_nonlocal_bind=1"
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return f"{reason}: raise LimitNOFILE= in the binder's unit, or lower --max-listeners"
    return reason


def _somaxconn() -> int:
    try:
        with open("/proc/sys/net/core/somaxconn") as setting:
            return int(setting.read())
    except OSError:
        return 0


def _first_unprivileged_port() -> str:
    try:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as setting:
            return setting.read().strip()
    except OSError:
        return "1024"
