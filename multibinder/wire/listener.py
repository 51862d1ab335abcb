"""Verify the sockets that a client receives, and set their mode."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence

from multibinder.kernel.socket_options import is_shared
from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from multibinder.wire.datagram_listener import DatagramListener
from multibinder.wire.errors import RemoteProtocolError
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.shared_listener import SharedListener


class NotListening(RemoteProtocolError):
    """The socket has the address that was asked for, and no client reaches it.

    A binder that stops takes back what it has answered and its client has not acknowledged.
    """


def class_for(address: Address) -> type[SharedListener]:
    """Return the class of the listeners of an address."""
    return SharedListener if kinds.of_address(address).accepts(address) else DatagramListener


def verify_received(descriptor: int, spec: ListenerSpec) -> SharedListener:
    """Return the socket of a received descriptor, after the kernel confirms that it is the requested listener.

    Takes the descriptor: it belongs to the result, or is closed when RemoteProtocolError is raised.
    """
    wanted = spec.address
    try:
        sock = class_for(wanted).received(descriptor, spec.shard, spec.netns)
    except OSError as error:
        os.close(descriptor)
        raise RemoteProtocolError(f"the descriptor for {wanted} is of no use: {error.strerror}") from error
    kind = kinds.of_address(wanted)
    name = kind.name.upper()
    try:
        if not kind.recognizes(sock):
            raise RemoteProtocolError(f"the descriptor for {wanted} is no {name} socket, but {sock.family!r}")
        bound = kind.address_of(sock)
        if spec.shard and wanted.matches(bound) and is_shared(sock) and not kind.is_ready(sock):
            # A new shard listens when a process has it, so that no client waits where nobody accepts. One that the
            # binder has taken back is not shared any more.
            with socket.socket(fileno=os.dup(sock.fileno())) as plain:  # a SharedListener leaves that to the binder
                kind.make_ready(plain, None)
        ready = kind.is_ready(sock)
        if not wanted.matches(bound) and not kind.is_bound_to(sock, wanted):
            state = "listens on" if ready else "is bound to, without listening,"
            raise RemoteProtocolError(f"asked for {wanted}, but the socket that came {state} {bound}")
        if not ready:
            raise NotListening(f"asked for {wanted}, but the socket that came is bound to, without listening, {bound}")
    except OSError as error:
        sock.close()
        raise RemoteProtocolError(f"the descriptor for {wanted} is no {name} socket: {error}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def verify_all_received(descriptors: Sequence[int], wanted: Sequence[ListenerSpec]) -> list[SharedListener]:
    """Call ``verify_received`` for each descriptor. Takes all of them, and closes all of them if one is refused."""
    sockets: list[SharedListener] = []
    try:
        for descriptor, spec in zip(descriptors, wanted, strict=True):
            sockets.append(verify_received(descriptor, spec))
    except BaseException:
        close_all(sockets)
        for descriptor in descriptors[len(sockets) + 1 :]:
            os.close(descriptor)
        raise
    return sockets


def close_all(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def set_mode(sockets: list[SharedListener], blocking: bool) -> list[SharedListener]:
    """Set the mode of each, for this process alone, and return them."""
    for sock in sockets:
        sock.setblocking(blocking)
    return sockets
