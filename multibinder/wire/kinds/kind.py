"""The interface of a kind."""

from __future__ import annotations

import abc
import socket
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar, NamedTuple

from multibinder.wire.addresses import Address
from multibinder.wire.errors import AddressError
from multibinder.wire.options import Options


class Queue(NamedTuple):
    """The queue in which clients of one socket wait. ``length`` and ``limit`` are meaningless unless ``ready``.

    Both count what the kind says (``queue_unit``), and are 0 if the kernel does not tell (``tells_queue``).
    """

    ready: bool
    length: int
    limit: int


class OptionError(OSError):
    """The kernel refuses an option. ``remedy`` follows the kernel's message: the feature or the right that it needs."""

    def __init__(self, option: str, error: OSError, remedy: str) -> None:
        super().__init__(error.errno, error.strerror)
        self.option = option
        self.remedy = remedy


class Repaired(NamedTuple):
    """The result of ``Kind.repair``: the limit of the queue, and the socket that takes the place of the old one.

    ``replacement`` is None if the socket itself is ready again. The caller owns a replacement.
    """

    limit: int
    replacement: socket.socket | None = None


class Kind(abc.ABC):
    """A kind of socket that the binder can hold. It has no state: a socket and its address are arguments.

    A socket is ready when clients can reach it: a stream socket listens, and a path leads to the socket.
    """

    #: The name in messages and metrics.
    name: ClassVar[str]
    #: The options (``Options``, but for ``name``) that sockets of this kind have, and that cannot change after bind(2).
    fixed_options: ClassVar[frozenset[str]]
    #: The options that can change while the socket exists.
    live_options: ClassVar[frozenset[str]]
    #: Whether what the kernel tells of a socket can be read in the socket's network namespace only (sock_diag(7)).
    is_read_inside: ClassVar[bool] = False
    #: Whether several listeners can share an address (SO_REUSEPORT).
    can_shard: ClassVar[bool] = False
    #: Whether the kernel can give the clients in the queue of a shard that stops to another one.
    moves_clients: ClassVar[bool] = False
    #: Whether ``ready_inodes`` has all ready sockets of this network namespace.
    is_listed: ClassVar[bool] = True
    #: Whether the kernel tells length and limit of the queue, and the number of drops. Else ``queue`` and ``drops``
    #: return 0.
    tells_queue: ClassVar[bool] = True
    tells_drops: ClassVar[bool] = True
    #: The unit of the queue: connections (listen(2)), or bytes.
    queue_unit: ClassVar[str] = "connections"

    @abc.abstractmethod
    def recognizes(self, sock: socket.socket) -> bool:
        """Return whether a socket is of this kind. Makes no system call."""

    @abc.abstractmethod
    def address_of(self, sock: socket.socket) -> Address:
        """Return the address that a socket of this kind is bound to (getsockname(2))."""

    def is_bound_to(self, sock: socket.socket, address: Address) -> bool:
        """Return whether this is the address of a socket of this kind, which it may have under several names."""
        return self.address_of(sock) == address

    def check(self, address: Address, options: Options) -> None:
        """Raise AddressError if an option has no meaning for this address."""
        for option in options.given:
            if option not in self.fixed_options and option not in self.live_options:
                known = ", ".join(sorted(self.fixed_options | self.live_options))
                raise AddressError(f"{address}: a listener of the kind {self.name} has no option {option}, but {known}")

    def accepts(self, address: Address) -> bool:
        """Return whether clients of this address connect, and are accepted. Else it receives datagrams."""
        return True

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
        """Return a socket that is bound to ``address``, close-on-exec and not ready yet, with all ``options``.

        ``beside`` are sockets of this process on addresses that overlap, for each of which ``can_be_beside`` is true;
        they are as before when this returns. The caller owns the result. Raises OSError, which is OptionError if an
        option is the reason; no descriptor is left open then.
        """

    def discard(self, sock: socket.socket, address: Address) -> None:
        """Close a socket that ``open`` has returned and that never became ready, with all that it has left."""
        sock.close()

    def set_option(self, sock: socket.socket, option: str, value: Any) -> None:
        """Set one of the ``live_options``, but ``backlog``; None gives it the default of a new socket back.

        Raises OptionError.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def actual_options(self, sock: socket.socket, options: Options) -> Options:
        """Return ``options`` with the socket's own values of the ``fixed_options``."""

    def options_of(self, sock: socket.socket) -> Options:
        """Return the options that a socket has and a new one has not, but for ``backlog``; of any program's socket."""
        return Options()

    @abc.abstractmethod
    def make_ready(self, sock: socket.socket, backlog: int | None, beside: Sequence[socket.socket] = ()) -> int:
        """Let clients in, with a queue of at most ``backlog``, and return the limit that the kernel set.

        Call it again on a ready socket to change its queue. None asks for the longest queue. ``beside`` is as in
        ``open``. Raises OSError.
        """

    @abc.abstractmethod
    def repair(
        self, sock: socket.socket, address: Address, options: Options, beside: Sequence[socket.socket] = ()
    ) -> Repaired:
        """Let clients reach a socket again that is not ready any more; ``address`` is its previous address.

        A holder has shut it down, or has removed its path. Where the kernel cannot undo that, a new socket with
        ``options`` takes its place. Takes ``beside`` and raises what ``make_ready`` does; the old socket is left open.
        """

    def require_repairable(
        self, sock: socket.socket, address: Address, options: Options, beside: Sequence[socket.socket] = ()
    ) -> None:
        """Raise the OSError that ``repair`` would raise, and let no client in.

        A second socket finds out whether another process has the address now.
        """
        self.discard(self.open(address, options, beside), address)

    def caution(self, address: Address) -> str | None:
        """Return a sentence for the log about what other users of this host can do to the listener, or None."""
        return None

    def end_sharing(self, sock: socket.socket) -> None:  # noqa: B027 (most kinds have nothing to do)
        """Undo what a process that was killed while it opened a socket beside this one has left on it."""

    def prepare_adopted(self, sock: socket.socket, address: Address) -> None:  # noqa: B027 (most need nothing)
        """Prepare the repair of a socket that another program has made. What is not possible is left out."""

    def take_alone(self, sock: socket.socket, address: Address) -> None:  # noqa: B027 (most kinds have nothing to do)
        """Let no other process bind ``address``, which a socket of another program has with SO_REUSEPORT, too.

        Raises OSError. Needs CAP_CHOWN for a wildcard address.
        """

    def let_go(self, sock: socket.socket) -> None:  # noqa: B027 (most kinds have nothing to do)
        """Remove what the binder has made beside the socket, which others go on to use. Raises OSError."""

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
        """Return whether the socket takes clients. Makes some system calls."""

    def is_reachable(self, sock: socket.socket, address: Address) -> bool:
        """Return whether clients reach the socket at ``address``: it is ready, and its path leads to it."""
        return self.is_ready(sock)

    @abc.abstractmethod
    def queue(self, sock: socket.socket) -> Queue:
        """Read the queue from the socket. Makes one system call."""

    def tells_queue_at(self, address: Address) -> bool:
        """Return whether the kernel tells length and limit of the queue of a socket on this address."""
        return self.tells_queue

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
