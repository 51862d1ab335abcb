"""The interface of a kind."""

from __future__ import annotations

import abc
import socket
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import ClassVar, NamedTuple

from multibinder.wire.addresses import Address
from multibinder.wire.options import Options


class Queue(NamedTuple):
    """The queue in which clients of one socket wait. ``length`` and ``limit`` are meaningless unless ``ready``.

    For a stream socket both count connections (listen(2)).
    """

    ready: bool
    length: int
    limit: int


class Kind(abc.ABC):
    """A kind of socket that the binder can hold. It has no state: a socket and its address are arguments.

    A socket is ready when clients can reach it: a stream socket listens.
    """

    #: The name in messages and metrics.
    name: ClassVar[str]

    @abc.abstractmethod
    def recognizes(self, sock: socket.socket) -> bool:
        """Return whether a socket is of this kind. Makes no system call."""

    @abc.abstractmethod
    def address_of(self, sock: socket.socket) -> Address:
        """Return the address that a socket of this kind is bound to (getsockname(2))."""

    @abc.abstractmethod
    def check(self, address: Address, options: Options) -> None:
        """Raise AddressError if an option has no meaning for this address."""

    @abc.abstractmethod
    def effective_addresses(self, address: Address, v6only: bool | None) -> tuple[Address, ...]:
        """Return every address that a listener on ``address`` occupies, the most specific one first.

        ``v6only`` is the present or the requested value; None means the default.
        """

    def can_be_beside(self, address: Address, v6only: bool | None, other: Address, other_v6only: bool | None) -> bool:
        """Return whether sockets on two addresses that overlap can be ready at the same time.

        That is so if the kernel always gives a client to the same one of them, and each of them gets some clients.
        """
        return False

    @abc.abstractmethod
    def open(self, address: Address, options: Options, beside: Sequence[socket.socket] = ()) -> socket.socket:
        """Return a socket that is bound to ``address``, close-on-exec and not ready yet.

        ``beside`` are sockets of this process on addresses that overlap, for each of which ``can_be_beside`` is true;
        they are as before when this returns. The caller owns the result. Raises OSError; no descriptor is left open
        then.
        """

    @abc.abstractmethod
    def actual_options(self, sock: socket.socket, options: Options) -> Options:
        """Return ``options`` with the socket's own values of the options that are fixed at bind(2)."""

    @abc.abstractmethod
    def make_ready(self, sock: socket.socket, backlog: int | None, beside: Sequence[socket.socket] = ()) -> int:
        """Let clients in, with a queue of at most ``backlog``, and return the limit that the kernel set.

        Call it again on a ready socket to change its queue. None asks for the longest queue. ``beside`` is as in
        ``open``. Raises OSError.
        """

    @abc.abstractmethod
    def repair(
        self, sock: socket.socket, address: Address, backlog: int | None, beside: Sequence[socket.socket] = ()
    ) -> int:
        """Make a socket ready again that another holder has shut down; ``address`` is its previous address.

        Takes ``beside``, returns and raises what ``make_ready`` does.
        """

    def end_sharing(self, sock: socket.socket) -> None:  # noqa: B027 (most kinds have nothing to do)
        """Undo what a process that was killed while it opened a socket beside this one has left on it."""

    def turn_away(self, sock: socket.socket) -> float:
        """Keep new clients from the socket; those that wait in its queue stay there. Raises OSError.

        Returns for how many seconds clients may still come into the queue that had begun to connect. A kind that cannot
        do it lets clients in.
        """
        return 0.0

    def let_in(self, sock: socket.socket) -> None:  # noqa: B027 (nothing to undo)
        """Undo ``turn_away``, but for the length of the queue (``make_ready``). Raises OSError."""

    @abc.abstractmethod
    def retire(self, sock: socket.socket) -> None:
        """Keep new clients from the socket, for every process that holds it. The caller still has to close it.

        Where that is possible, the socket does not wake its holders any more. Raises OSError. A socket that is not
        ready any more is not an error.
        """

    def is_retired(self, sock: socket.socket) -> bool:
        """Return whether ``retire`` is known to have succeeded for this socket. False if that cannot be told."""
        return False

    @abc.abstractmethod
    def is_ready(self, sock: socket.socket) -> bool:
        """Return whether clients can reach the socket. Makes one system call."""

    @abc.abstractmethod
    def queue(self, sock: socket.socket) -> Queue:
        """Read the queue from the socket. Makes one system call."""

    @abc.abstractmethod
    def drops(self, sock: socket.socket) -> int:
        """Return how many packets of clients the socket has dropped since it was created. Makes one system call.

        The kernel's counter has 32 bits and wraps around.
        """

    @abc.abstractmethod
    def largest_queue(self) -> int:
        """Return the longest queue limit that the kernel allows at this moment; 0 if it cannot be read."""

    @abc.abstractmethod
    def colliding_inodes(self, address: Address) -> AbstractSet[int]:
        """Return the inodes of the sockets, in this network namespace, that keep ``address`` from being bound.

        Raises OSError if the kernel's list cannot be read.
        """

    def colliding_addresses(self, address: Address) -> Mapping[int, Address]:
        """Return the addresses of those sockets, by their inodes; empty if the kind does not tell. Raises OSError."""
        return {}

    @abc.abstractmethod
    def ready_inodes(self) -> AbstractSet[int]:
        """Return the inodes of all ready sockets of this kind in this network namespace.

        Raises OSError if the kernel's list cannot be read.
        """

    @abc.abstractmethod
    def explain_refusal(self, address: Address, number: int, holders: str | None) -> str | None:
        """Return the remedy for the errno ``number`` of ``open``, as a text that follows the kernel's message.

        After EADDRINUSE, ``holders`` names the processes that have the address; it is empty if they are unknown, and
        None if no socket there is ready. Returns None if the kind has no remedy.
        """

    def collision_remedy(self, address: Address, other: Address) -> str:
        """Return how two addresses that collide can both be bound, as a part of a sentence. Empty if they cannot."""
        return ""

    @abc.abstractmethod
    def ss_command(self, address: Address, show: str) -> str:
        """Return the ss(8) command that lists the sockets on this address, with the option letters in ``show``."""
