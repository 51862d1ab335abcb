"""``bind``, ``bind_many``, ``release`` and ``sync``: one call each, with a connection of its own.

Also the ``fallback`` of the first two, which binds in this process.
"""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, overload

from multibinder.wire import kinds, messages
from multibinder.wire.addresses import Address
from multibinder.wire.arguments import (
    DEFAULT_TIMEOUT_S,
    SOCKET_VARIABLE,
    BindTarget,
    ReleaseTarget,
    spec_of,
    specs_of,
    specs_of_one,
    timeout_s,
    wait_s,
)
from multibinder.wire.client import Client
from multibinder.wire.errors import BindError, ConfigurationError, LocalProtocolError, errname
from multibinder.wire.excerpt import shown
from multibinder.wire.listener import class_for, set_mode
from multibinder.wire.listener_options import ListenerOptions, with_options
from multibinder.wire.messages import ListenerSpec, Released
from multibinder.wire.options import check_optional_owner, check_owner
from multibinder.wire.shared_listener import SharedListener
from multibinder.wire.spread import Shards

if TYPE_CHECKING:
    from typing import Unpack


class BindKeywords(ListenerOptions, total=False):
    """The keywords of ``bind``, but for ``shards``."""

    netns: str
    owner: str
    inheritable: bool
    blocking: bool
    socket_path: str | os.PathLike[str] | None
    timeout: float | None
    wait: float
    fallback: bool


@overload
def bind(host: str, port: int, *, shards: None = None, **keywords: Unpack[BindKeywords]) -> SharedListener: ...


@overload
def bind(host: str | Address, *, shards: None = None, **keywords: Unpack[BindKeywords]) -> SharedListener: ...


@overload
def bind(
    host: str | Address, port: int | None = None, *, shards: Shards, **keywords: Unpack[BindKeywords]
) -> list[SharedListener]: ...


def bind(
    host: str | Address,
    port: int | None = None,
    *,
    shards: Shards | None = None,
    netns: str = "",
    owner: str = "",
    inheritable: bool = False,
    blocking: bool = True,
    socket_path: str | os.PathLike[str] | None = None,
    timeout: float | None = DEFAULT_TIMEOUT_S,
    wait: float = 0.0,
    fallback: bool = False,
    **options: Unpack[ListenerOptions],
) -> SharedListener | list[SharedListener]:
    """Get the listener of an address from the binder, which creates it if it does not exist yet.

    ``bind("127.0.0.1", 8000)`` is a TCP listener: ``host`` is a numeric IPv4 or IPv6 address, ``port`` 0 to 65535 (0:
    the kernel chooses; give a ``name`` to get the same port again). An address alone is in HAProxy's grammar, and its
    prefix says the kind: ``bind("[::]:443")``, ``bind("udp@127.0.0.1:53")``, ``bind("unix@/run/app.sock",
    mode=0o660, group="www-data")``. Datagrams are for a ``DatagramListener``, which has ``recvfrom()``.

    The ``options`` are those of ``Options``, each where its kind has it: ``backlog`` is the length of the accept queue
    in connections, by default net.core.somaxconn; ``v6only`` is IPV6_V6ONLY. ``user`` and ``group`` are a name or a
    number. With ``shards``, a number or ``"cpus"``, the result is a list: so many listeners on the address, each with a
    queue of its own; fewer than before release the others. ``netns`` is a network namespace: a name, a path or a PID.

    ``owner`` labels your claim, for ``release``. ``socket_path`` defaults to $MULTIBINDER_SOCK. ``timeout`` is in
    seconds, None for no limit; ``wait`` is how many seconds to wait, before that, for a binder that is not there yet.

    The caller owns the socket: it is ready for ``accept()``, and close-on-exec unless ``inheritable``. Give
    ``blocking=False`` to servers that take its descriptor, or select before they accept: another copy may take the
    client in between. (``socketserver`` and callbacks of an event loop do not need it.) When you close the socket, the
    port stays open in the binder. Other processes may accept on it too, so a new copy of a server can start before the
    old one stops. If no binder is configured, ``fallback=True`` binds in this process and warns.

    Raises AddressError, BindError (``errno``), NotAllowed, LimitReached, BinderUnavailable, BinderTimeout,
    ConfigurationError, ArgumentError.

        listener = multibinder.bind("127.0.0.1", 8000, owner="hello")
        connection, peer = listener.accept()
    """
    where: str | Address | tuple[str, int] = host if port is None else (host, port)  # type: ignore[assignment]
    specs = with_options(specs_of_one(where, shards, netns), options)
    if shards is None and len(specs) != 1:
        raise LocalProtocolError(f"{shown(host)} names {len(specs)} listeners: call bind_many([…]), which returns them")
    sockets = _bind_or_fall_back(specs, owner, inheritable, socket_path, timeout, wait, fallback)
    set_mode(sockets, blocking)
    return sockets[0] if shards is None else sockets


def bind_many(
    wanted: Iterable[BindTarget],
    *,
    shards: Shards | None = None,
    netns: str = "",
    owner: str = "",
    inheritable: bool = False,
    blocking: bool = True,
    socket_path: str | os.PathLike[str] | None = None,
    timeout: float | None = DEFAULT_TIMEOUT_S,
    wait: float = 0.0,
    fallback: bool = False,
) -> list[SharedListener]:
    """Do what ``bind`` does for several addresses in one round trip: all of them, in the order of ``wanted``, or none.

    ``wanted`` has ``("127.0.0.1", 8000)`` tuples, addresses, or ``ListenerSpec(address, Options(…))``. A text may name
    several: ``"0.0.0.0:8000-8009,udp@0.0.0.0:53"``. ``shards`` and ``netns`` are for each of them that does not say
    its own.
    """
    specs = specs_of(wanted, shards, netns)
    return set_mode(_bind_or_fall_back(specs, owner, inheritable, socket_path, timeout, wait, fallback), blocking)


def release(
    what: ReleaseTarget,
    *,
    netns: str = "",
    owner: str = "",
    drain: float = 0.0,
    socket_path: str | os.PathLike[str] | None = None,
    timeout: float | None = DEFAULT_TIMEOUT_S,
    wait: float = 0.0,
) -> Released:
    """Give up the claim of ``owner`` on a listener. If no claim is left, the port closes, for every holder.

    ``what`` is what ``bind`` returned, what ``Client.list`` returned, ``("127.0.0.1", 8000)``, an address or a
    ``ListenerSpec``. An address means all of its shards, a listener itself alone; ``netns`` is the network namespace of
    an address. ``owner`` is the label that was given to ``bind``. A socket stays open; close it yourself.

    Without ``drain``, clients that wait in the queue are reset. With it, no new client is let in, and the port closes
    when its holders have accepted those that wait, or after this many seconds; the call returns then. Go on accepting
    in another thread meanwhile, or let another process do so. ``reset`` of the result says how many still waited.

    The ``outcome`` of the result is ``closed``, ``kept`` (another owner has a claim: see ``owners``) or ``absent``. If
    the binder has the listener and ``owner`` has no claim, a RuntimeWarning says so, and ``had_claim`` is False.

    Raises AddressError, NotAllowed, BinderUnavailable, BinderTimeout, ConfigurationError, ArgumentError.
    """
    spec = spec_of(what, netns, whole=True)
    with Client(socket_path, timeout=timeout, wait=wait) as client:
        [released] = client.release([spec], owner=owner, drain=drain)
    if released.outcome == "kept" and not released.had_claim:
        of = f"owner '{owner}'" if owner else "a client without a label"
        others = ", ".join(released.owners) or "a client without a label"
        warnings.warn(
            f"{released.address}: not released: {of} has no claim, but {others} has", RuntimeWarning, stacklevel=2
        )
    return released


def sync(
    owner: str,
    wanted: Iterable[BindTarget],
    *,
    shards: Shards | None = None,
    netns: str = "",
    drain: float = 0.0,
    inheritable: bool = False,
    blocking: bool = True,
    socket_path: str | os.PathLike[str] | None = None,
    timeout: float | None = DEFAULT_TIMEOUT_S,
    wait: float = 0.0,
) -> list[SharedListener]:
    """Make the listeners of ``owner`` exactly these: bind them, and release what else the owner has.

    For a program whose addresses come from a configuration: a port that the configuration names no more is closed,
    also if the program died in between. ``owner`` is a label that no other program of this user has.

    ``drain`` is that of ``release``: the call returns when the others are closed, after this many seconds at most. The
    caller owns the sockets, as those of ``bind_many``; all are bound, in the order of ``wanted``, or none, and
    nothing is released. Raises what ``bind_many`` and ``release`` raise.
    """
    check_owner(owner)
    specs = specs_of(wanted, shards, netns)
    with Client(socket_path, timeout=timeout, wait=wait) as client:
        return client._sync(specs, owner, drain, inheritable, blocking, stacklevel=4)


def _bind_or_fall_back(
    specs: Sequence[ListenerSpec],
    owner: str,
    inheritable: bool,
    socket_path: str | os.PathLike[str] | None,
    timeout: float | None,
    wait: float,
    fallback: bool,
) -> list[SharedListener]:
    check_optional_owner(owner), timeout_s(timeout), wait_s(wait)  # a wrong one is an error on a laptop, too
    if fallback and not (socket_path or os.environ.get(SOCKET_VARIABLE)):
        warnings.warn(
            f"{SOCKET_VARIABLE} is not set: binding in this process, so a restart will refuse connections",
            RuntimeWarning,
            stacklevel=3,
        )
        return _bind_here(specs, inheritable)
    with Client(socket_path, timeout=timeout, wait=wait) as client:
        return client._bind(specs, owner, inheritable, stacklevel=4)


def _bind_here(specs: Sequence[ListenerSpec], inheritable: bool) -> list[SharedListener]:
    """Bind all of them and make them ready, or raise BindError and leave none. The caller owns the sockets.

    Shards are copies of one socket, which is enough for a server of one process.
    """
    with contextlib.ExitStack() as undo:
        plain: list[socket.socket] = []
        for spec in specs:
            kind = kinds.of_address(spec.address)
            if spec.netns:
                raise ConfigurationError(
                    f"{SOCKET_VARIABLE} is not set, and netns={spec.netns!r} needs a binder: fallback binds in the "
                    "network namespace of this process"
                )
            try:
                if spec.shard:
                    plain.append(undo.enter_context(plain[-1].dup()))
                    continue
                sock = kind.open(spec.address, spec.options)
                undo.callback(kind.discard, sock, spec.address)
                kind.make_ready(sock, spec.options.backlog)
            except OSError as error:
                number = error.errno or 0
                raise BindError(
                    f"Could not bind: {spec.address}: {os.strerror(number)}",
                    messages.COULD_NOT_BIND,
                    {"errno": number, "errname": errname(number), "address": str(spec.address)},
                ) from error
            plain.append(sock)
        undo.pop_all()
    sockets = [
        class_for(spec.address).received(sock.detach(), spec.shard, "") for spec, sock in zip(specs, plain, strict=True)
    ]
    for sock in sockets:
        sock.set_inheritable(inheritable)
    return sockets
