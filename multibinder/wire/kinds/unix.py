"""Unix sockets (unix(7)): streams, datagrams and packets in sequence at a path, and streams with an abstract name."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Sequence
from typing import Any, ClassVar

from multibinder.kernel import socket_file
from multibinder.kernel.unix_diag import inodes_at, leads_to, look_at
from multibinder.kernel.unix_state import (
    has_waiting,
    is_shut_down,
    is_silenced,
    let_everybody_send,
    longest_datagram_queue,
    peer_name,
    refuse_waiting_clients,
    silence,
)
from multibinder.kernel.unix_table import inodes_named, rows
from multibinder.wire.addresses import AbstractAddress, Address, UnixAddress
from multibinder.wire.errors import AddressError
from multibinder.wire.kinds import inet_options
from multibinder.wire.kinds.kind import Kind, OptionError, Queue, Repaired
from multibinder.wire.kinds.tcp import TCP
from multibinder.wire.kinds.unix_remedies import in_use_remedy, name_remedy, option_remedy, path_remedy
from multibinder.wire.options import Options

#: The largest argument of listen(2). The kernel reduces it to net.core.somaxconn.
_LONGEST_BACKLOG = 2**31 - 1
#: Without the option ``mode``: whoever is to connect must be named.
_MODE = 0o600
_OF_FILE = frozenset({"mode", "user", "group"})
_BUFFERS = frozenset({"rcvbuf", "sndbuf"})


class Unix(Kind):
    """Unix sockets. A socket is ready when it listens, or receives datagrams of everybody, and no holder has shut it
    down. Clients reach it if its path leads to it, too.

    The file of a socket at a path has the mode 0 until its owner and its mode are set, so that nobody connects before.
    """

    name: ClassVar[str] = "unix"
    fixed_options = frozenset[str]()
    is_read_inside = True
    live_options = frozenset({"backlog", "mode", "user", "group", "rcvbuf", "sndbuf"})
    tells_drops = False

    def recognizes(self, sock: socket.socket) -> bool:
        return sock.family == socket.AF_UNIX

    def address_of(self, sock: socket.socket) -> UnixAddress | AbstractAddress:
        """Raises AddressError for a socket without a name, or with one that no address has."""
        name = sock.getsockname()
        if isinstance(name, bytes) and name and sock.type == socket.SOCK_STREAM:
            return AbstractAddress.of_name(name)
        if (path := socket_file.path_of(sock)) is None:
            raise AddressError(f"a Unix socket with the name {name!r} is no listener: it has no absolute path")
        return UnixAddress.of(path, sock.type)

    def is_bound_to(self, sock: socket.socket, address: Address) -> bool:
        """A program may have renamed the file after bind(2). Then unix_diag tells where it is."""
        with contextlib.suppress(AddressError):
            if self.address_of(sock) == address:
                return True
        if not isinstance(address, UnixAddress) or sock.type != address.type:
            return False
        file = socket_file.file_of(sock)
        return file is not None and leads_to(address.path, file)

    def check(self, address: Address, options: Options) -> None:
        super().check(address, options)
        given = options.given
        if isinstance(address, AbstractAddress) and (strange := sorted(_OF_FILE & given.keys())):
            raise AddressError(f"{address}: an abstract name has no {strange[0]}: every user can connect")
        if not self.accepts(address) and "backlog" in given:
            raise AddressError(
                f"{address}: a datagram socket has no backlog; the length of its queue is net.unix.max_dgram_qlen"
            )

    def accepts(self, address: Address) -> bool:
        return _unix(address).is_connected

    def effective_addresses(self, address: Address, v6only: bool | None) -> tuple[Address, ...]:
        return (address,)

    def open(self, address: Address, options: Options, beside: Sequence[socket.socket] = ()) -> socket.socket:
        unix = _unix(address)
        sock = socket.socket(socket.AF_UNIX, unix.type)
        try:
            if isinstance(unix, UnixAddress):
                socket_file.bind_file(sock, unix.path)
            else:
                sock.bind(unix.sockaddr)
            inet_options.set_all(sock, options)
            if isinstance(unix, UnixAddress):
                self._set_owner_and_mode(sock, unix.path, options)
        except BaseException:
            self.discard(sock, address)
            raise
        return sock

    def discard(self, sock: socket.socket, address: Address) -> None:
        if isinstance(address, UnixAddress):
            with contextlib.suppress(OSError):
                if sock.getsockname() == address.path:
                    socket_file.remove_file(sock, address.path)
        sock.close()

    def set_option(self, sock: socket.socket, option: str, value: Any) -> None:
        if option in _BUFFERS:
            inet_options.set_option(sock, option, value)
            return
        try:
            path = socket_file.path_of(sock)
            if path is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            if option == "mode":
                socket_file.set_mode(sock, path, _MODE if value is None else value)
            elif option == "user":
                socket_file.set_owner(sock, path, user=os.geteuid() if value is None else value)
            else:
                socket_file.set_owner(sock, path, group=socket_file.default_group(path) if value is None else value)
        except OSError as error:
            raise OptionError(option, error, option_remedy(option, error.errno)) from error

    def actual_options(self, sock: socket.socket, options: Options) -> Options:
        return options

    def prepare_adopted(self, sock: socket.socket, address: Address) -> None:
        """A path that the program removes at its end can be given back then."""
        if isinstance(address, UnixAddress) and not socket_file.has_hidden_name(sock, address.path):
            socket_file.add_hidden_name(sock, address.path)

    def options_of(self, sock: socket.socket) -> Options:
        """Return the options that a socket has and a new one has not, but for ``backlog``; of any program's socket."""
        found = inet_options.options_set(sock, _BUFFERS)
        if (path := socket_file.path_of(sock)) is not None and socket_file.is_at(sock, path):
            status = os.lstat(path)
            found |= {"mode": status.st_mode & 0o777, "user": status.st_uid, "group": status.st_gid}
        return Options(**found)

    def make_ready(self, sock: socket.socket, backlog: int | None, beside: Sequence[socket.socket] = ()) -> int:
        """The kernel reduces every backlog to net.core.somaxconn (__sys_listen() in net/socket.c). A datagram socket is
        ready when it is bound."""
        if sock.type != socket.SOCK_DGRAM:
            sock.listen(_LONGEST_BACKLOG if backlog is None else backlog)
        return self.queue(sock).limit

    def repair(
        self, sock: socket.socket, address: Address, options: Options, beside: Sequence[socket.socket] = ()
    ) -> Repaired:
        """A removed or renamed path is given back to the socket where its hidden name is left, with all clients that
        wait. Nothing undoes shutdown(2): then a new socket takes the path."""
        unix = _unix(address)
        if isinstance(unix, AbstractAddress):
            self.require_repairable(sock, address, options)
            return Repaired(self.make_ready(sock, options.backlog))
        if sock.type == socket.SOCK_DGRAM and peer_name(sock) is not None:
            let_everybody_send(sock)
        is_there = socket_file.is_at(sock, unix.path)
        if not is_shut_down(sock) and (is_there or socket_file.put_back(sock, unix.path)):
            if not is_there:
                socket_file.add_hidden_name(sock, unix.path)
            return Repaired(self.make_ready(sock, options.backlog))
        if is_there:
            socket_file.remove_file(sock, unix.path)
        replacement = self.open(address, options)
        try:
            return Repaired(self.make_ready(replacement, options.backlog), replacement)
        except OSError:
            self.discard(replacement, address)
            raise

    def require_repairable(
        self, sock: socket.socket, address: Address, options: Options, beside: Sequence[socket.socket] = ()
    ) -> None:
        unix = _unix(address)
        if isinstance(unix, AbstractAddress):
            if is_shut_down(sock):
                # The name belongs to the dead socket until its last holder has closed it; we are one.
                raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
        elif not socket_file.is_at(sock, unix.path):
            socket_file.remove_stale(unix.path)

    def turn_away(self, sock: socket.socket) -> float:
        """The path is removed; the hidden name leads back. Clients of an abstract name are let in."""
        path = socket_file.path_of(sock)
        if path is not None and socket_file.has_hidden_name(sock, path):
            socket_file.remove_file(sock, path, keep_hidden=True)
        return 0.0

    def let_in(self, sock: socket.socket) -> None:
        path = socket_file.path_of(sock)
        if path is not None and not socket_file.is_at(sock, path) and not socket_file.put_back(sock, path):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if path is not None:
            socket_file.add_hidden_name(sock, path)

    def retire(self, sock: socket.socket) -> None:
        """The file is removed, if it is still that of the socket. A socket that accepts is shut down, and the clients
        that wait are refused; poll(2) reports it for ever then. A datagram socket is silenced."""
        removal: OSError | None = None
        try:
            if (path := socket_file.path_of(sock)) is not None:
                socket_file.remove_file(sock, path)
        except OSError as error:
            removal = error
        if sock.type == socket.SOCK_DGRAM:
            if not is_silenced(sock):
                if peer_name(sock) is not None:
                    let_everybody_send(sock)
                silence(sock)
        else:
            sock.shutdown(socket.SHUT_RDWR)
            refuse_waiting_clients(sock)
        if removal is not None:
            raise removal

    def let_go(self, sock: socket.socket) -> None:
        """The path stays, and its hidden name goes."""
        socket_file.remove_hidden_name(sock)

    def is_retired(self, sock: socket.socket) -> bool:
        return sock.type == socket.SOCK_DGRAM and is_silenced(sock)

    def is_ready(self, sock: socket.socket) -> bool:
        if sock.type == socket.SOCK_DGRAM:
            return peer_name(sock) is None and not is_shut_down(sock)
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) and not is_shut_down(sock)

    def is_reachable(self, sock: socket.socket, address: Address) -> bool:
        return self.is_ready(sock) and (address.path is None or socket_file.is_at(sock, address.path))

    def queue(self, sock: socket.socket) -> Queue:
        """The kernel does not count the datagrams in a queue: the length is 1 if one waits at least. Nor does it tell
        anything of a stream where sock_diag(7) may not be asked; the length is 0 then."""
        is_ready = self.is_ready(sock)
        if sock.type == socket.SOCK_DGRAM:
            return Queue(is_ready, int(has_waiting(sock)), longest_datagram_queue())
        try:
            seen = look_at(sock)
        except OSError:
            return Queue(is_ready, int(is_ready and has_waiting(sock)), self.largest_queue())
        return Queue(is_ready, seen.queue, seen.limit)

    def drops(self, sock: socket.socket) -> int:
        """The kernel drops nothing: clients of a full queue wait, or get EAGAIN."""
        return 0

    def tells_queue_at(self, address: Address) -> bool:
        return self.accepts(address)

    def largest_queue(self) -> int:
        return TCP.largest_queue()

    def colliding_inodes(self, address: Address) -> frozenset[int]:
        """A path is the same in all network namespaces, but only the sockets of this one are listed."""
        unix = _unix(address)
        if isinstance(unix, AbstractAddress):
            return inodes_named(unix.sockaddr.decode(errors="surrogateescape").replace("\0", "@"))
        with contextlib.suppress(OSError):
            return inodes_at(unix.path)
        return inodes_named(unix.path)

    def ready_inodes(self) -> frozenset[int]:
        return frozenset(
            row.inode for row in rows() if row.name and (row.is_listening or row.type == socket.SOCK_DGRAM)
        )

    def explain_refusal(self, address: Address, number: int, holders: str | None) -> str | None:
        unix = _unix(address)
        if number == errno.EADDRINUSE:
            return in_use_remedy(str(unix), holders, "path" if isinstance(unix, UnixAddress) else "abstract name")
        return name_remedy(number) if isinstance(unix, AbstractAddress) else path_remedy(unix.path, number)

    def ss_command(self, address: Address, show: str) -> str:
        name = f"@{address.name}*" if isinstance(address, AbstractAddress) else _unix(address).path
        return f"ss -x{'l' if self.accepts(address) else 'a'}{show} 'src {name}'"

    def _set_owner_and_mode(self, sock: socket.socket, path: str, options: Options) -> None:
        """The user last: without CAP_FOWNER, only the owner of a file can change its mode."""
        mode = _MODE if options.mode is None else options.mode
        for option, value in (("group", options.group), ("mode", mode), ("user", options.user)):
            if value is not None:
                self.set_option(sock, option, value)


UNIX = Unix()


def _unix(address: Address) -> UnixAddress | AbstractAddress:
    if not isinstance(address, UnixAddress | AbstractAddress):
        raise TypeError(f"{address} is no address of a Unix socket")
    return address
