"""What known programs do to their listeners when they reload or end: it matters once other processes hold them."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator

from multibinder.observe.holders import Process
from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from multibinder.wire.kinds import Kind

#: Programs (comm) that unlink the path of their Unix sockets at their end.
_UNLINKING = ("nginx", "gunicorn", "php-fpm")


def habits_of(address: Address, holders: Iterable[Process]) -> tuple[str, ...]:
    """Return sentences about what the programs that hold a listener do to it, when other processes hold it too."""
    return tuple(dict.fromkeys(_habits(address, [each.name for each in holders])))


def name_for_next_server(kind: Kind, sock: socket.socket, address: Address, holders: Iterable[Process]) -> Address:
    """Return the address by which the next server will ask for this socket.

    A UDP socket with SO_REUSEADDR could be for QUIC. Of the servers that set it, only HAProxy needs it for that.
    """
    plain, *_ = kind.effective_addresses(address, None)
    is_haproxy = any(each.name.startswith("haproxy") for each in holders)
    return plain if not is_haproxy and kind.is_bound_to(sock, plain) else address


def makes_path_anew(address: Address, holders: Iterable[Process]) -> bool:
    """Return whether a program replaces the path of this listener at each reload, as HAProxy does ``stats socket``."""
    return address.path is not None and any(each.name.startswith("haproxy") for each in holders)


def _habits(address: Address, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if address.path is not None:
            if name.startswith(_UNLINKING):
                yield f"{name} removes the path when it ends; the binder restores it"
            continue
        if not kinds.of_address(address).accepts(address):
            continue
        if name.startswith("haproxy"):
            yield (
                "a HAProxy that is started beside this one (-sf), and cannot bind, pauses the listener for all its "
                "holders; the binder undoes that, but clients that wait at that moment are reset. Start the new one "
                "by multibinder-haproxy"
            )
