"""What a kind does with sockets of another network namespace than the binder's: it does it there."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TypeVar, cast

from multibinder.binder import namespaces
from multibinder.binder.key import short_cookie
from multibinder.kernel.socket_options import netns_cookie_of
from multibinder.wire.addresses import Address
from multibinder.wire.kinds import Kind, OptionError, Queue, Repaired
from multibinder.wire.options import Options

T = TypeVar("T")


def kind_in(kind: Kind, cookie: int) -> Kind:
    """Return the kind for sockets in the namespace with this cookie; 0: the binder's own."""
    return cast(Kind, _KindInside(kind, cookie)) if cookie else kind


class _KindInside:
    """A kind whose methods act in a network namespace, where they make sockets, or read what the kernel tells of one.

    If the namespace cannot be entered, nothing new is opened. What is done with an existing socket is done from here:
    most of it needs no other socket.
    """

    def __init__(self, kind: Kind, cookie: int) -> None:
        self._kind = kind
        self._cookie = cookie

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kind, name)

    def open(self, address: Address, options: Options, beside: Sequence[socket.socket] = ()) -> socket.socket:
        sock = self._inside(None, lambda: self._kind.open(address, options, beside))
        self._require_here(sock, address)
        return sock

    def make_ready(self, sock: socket.socket, backlog: int | None, beside: Sequence[socket.socket] = ()) -> int:
        # listen(2) alone is the same from anywhere.
        if not beside:
            return self._kind.make_ready(sock, backlog)
        return self._inside_or_here(sock, lambda: self._kind.make_ready(sock, backlog, beside))

    def repair(
        self, sock: socket.socket, address: Address, options: Options, beside: Sequence[socket.socket] = ()
    ) -> Repaired:
        repaired = self._inside_or_here(sock, lambda: self._kind.repair(sock, address, options, beside))
        if repaired.replacement is not None:
            self._require_here(repaired.replacement, address)
        return repaired

    def require_repairable(
        self, sock: socket.socket, address: Address, options: Options, beside: Sequence[socket.socket] = ()
    ) -> None:
        self._inside_or_here(sock, lambda: self._kind.require_repairable(sock, address, options, beside))

    def turn_away(self, sock: socket.socket) -> float:
        return self._inside_or_here(sock, lambda: self._kind.turn_away(sock))

    def retire(self, sock: socket.socket) -> None:
        self._inside_or_here(sock, lambda: self._kind.retire(sock))

    def is_reachable(self, sock: socket.socket, address: Address) -> bool:
        return self._read(sock, lambda: self._kind.is_reachable(sock, address))

    def is_ready(self, sock: socket.socket) -> bool:
        return self._read(sock, lambda: self._kind.is_ready(sock))

    def queue(self, sock: socket.socket) -> Queue:
        return self._read(sock, lambda: self._kind.queue(sock))

    def colliding_inodes(self, address: Address) -> AbstractSet[int]:
        return self._inside(None, lambda: self._kind.colliding_inodes(address))

    def largest_queue(self) -> int:
        """Return 0: it is not known. The binder does not raise queues of other namespaces when it could."""
        return 0

    def explain_refusal(self, address: Address, number: int, holders: str | None) -> str | None:
        with contextlib.suppress(OptionError):
            return self._inside(None, lambda: self._kind.explain_refusal(address, number, holders))
        return self._kind.explain_refusal(address, number, holders)

    def _inside(self, sock: socket.socket | None, action: Callable[[], T]) -> T:
        return namespaces.inside(self._cookie, sock, action)

    def _read(self, sock: socket.socket, action: Callable[[], T]) -> T:
        return self._inside_or_here(sock, action) if self._kind.is_read_inside else action()

    def _inside_or_here(self, sock: socket.socket, action: Callable[[], T]) -> T:
        entered = False

        def act() -> T:
            nonlocal entered
            entered = True
            return action()

        try:
            return self._inside(sock, act)
        except OptionError:
            if entered:  # it is an error of ``action``
                raise
        return action()

    def _require_here(self, sock: socket.socket, address: Address) -> None:
        """Close a socket that is in another namespace. Raises OptionError then."""
        if short_cookie(netns_cookie_of(sock)) != self._cookie:
            self._kind.discard(sock, address)
            raise OptionError("netns", PermissionError(1, ""), f": {namespaces.NEEDED}")
