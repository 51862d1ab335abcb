"""What ``multibinder.asyncio`` and ``multibinder.threading`` share: which listeners they serve, and their end."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence

from multibinder.wire import kinds
from multibinder.wire.arguments import spec_of
from multibinder.wire.client import Client
from multibinder.wire.errors import ArgumentError, ConfigurationError
from multibinder.wire.messages import ListenerSpec, Released


def listeners_of(given: socket.socket | Iterable[socket.socket]) -> list[socket.socket]:
    """Return one listener, or several, as a list. Raises ArgumentError for what a server cannot serve."""
    listeners = [given] if isinstance(given, socket.socket) else list(given)
    if not listeners:
        raise ArgumentError("no listener was given")
    for each in listeners:
        if not isinstance(each, socket.socket):
            raise ArgumentError(f"{each!r} is no listener: give what multibinder.bind() returns")
        if each.type != socket.SOCK_STREAM:
            raise ArgumentError(
                f"{names_of([each])} has no streams, which this server serves: use accept() or recvfrom(), or "
                "asyncio's create_datagram_endpoint(sock=…)"
            )
        if hasattr(each, "do_handshake"):  # an SSLSocket, without an import of ssl
            raise ArgumentError(
                "the accept() of a listener that SSLContext.wrap_socket() made waits for each client's handshake: "
                "give the listener itself, and the context as ssl= (asyncio), or wrap the socket in get_request()"
            )
    return listeners


def specs_of_served(listeners: Iterable[socket.socket]) -> list[ListenerSpec]:
    """Return what names the listeners, as far as a binder can have them: each shard is one."""
    return [spec_of(each) for each in listeners if kinds.of_socket(each) is not None]


def names_of(listeners: Iterable[socket.socket]) -> str:
    """Return the addresses of listeners for a message."""
    return ", ".join(str(kinds.address_of(each) or each.getsockname()) for each in listeners)


def retire(
    specs: Sequence[ListenerSpec], owner: str, drain_s: float, socket_path: str | os.PathLike[str] | None
) -> list[Released]:
    """Release listeners for good, while their server accepts those that wait. Returns when they are closed.

    Without a binder, as after ``bind(fallback=True)``, there is nothing to release. Raises ArgumentError if ``owner``
    has no claim on one that another owner keeps, and what ``Client.release`` raises.
    """
    try:
        with Client(socket_path) as client:
            released = client.release(specs, owner=owner, drain=drain_s)
    except ConfigurationError:
        return []
    for each in released:
        if each.outcome == "kept" and not each.had_claim:
            others = ", ".join(each.owners) or "a client without a label"
            raise ArgumentError(f"{each.address}: not released: owner {owner!r} has no claim, but {others} has")
    return released
