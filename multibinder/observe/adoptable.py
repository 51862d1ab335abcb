"""Find the listeners of running programs that ``multibinder adopt`` can take over, and copy them (pidfd_getfd(2))."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Collection, Iterable, Sequence

import msgspec

from multibinder.kernel.descriptors import scan, sockets_of
from multibinder.kernel.netns import own_cookie
from multibinder.kernel.pidfd import duplicate_socket
from multibinder.kernel.process import is_program, name_of
from multibinder.kernel.socket_options import is_connected, netns_cookie_of
from multibinder.observe.holders import Place, Process
from multibinder.observe.server_habits import habits_of, makes_path_anew, name_for_next_server
from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from multibinder.wire.errors import AddressError

_RIGHTS = (
    "copying it needs the same user, or CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH (run this as root); "
    "kernel.yama.ptrace_scope and a seccomp filter can forbid it too"
)


class Adoptable(msgspec.Struct, frozen=True, eq=False):
    """A listener of running processes.

    ``socket`` is a copy, which belongs to the caller of ``find``; None if this user may not copy it. ``obstacle`` tells
    why it is not to be adopted; empty if it can be. ``differs`` are sentences about what its programs do to a listener
    that stays open when they end. ``netns`` is the SO_NETNS_COOKIE.
    """

    address: Address | None
    socket: socket.socket | None
    holders: tuple[Process, ...]
    obstacle: str = ""
    differs: tuple[str, ...] = ()
    netns: int = 0

    @property
    def shown(self) -> str:
        """The address; a description of the socket if no kind has one for it."""
        if self.address is not None:
            return str(self.address)
        if self.socket is None:
            return "?"
        return f"{self.socket.family.name} {self.socket.type.name} {self.socket.getsockname()!r}"


class Found(msgspec.Struct, frozen=True):
    """The result of ``find``. ``unreadable`` are processes whose descriptors this user may not read."""

    listeners: tuple[Adoptable, ...]
    unreadable: tuple[Process, ...]

    def close(self) -> None:
        """Close the copies."""
        for each in self.listeners:
            if each.socket is not None:
                each.socket.close()


def find(addresses: Sequence[Address], pids: Collection[int], except_: Collection[int]) -> Found:
    """Return the listeners on ``addresses``, and those of the processes ``pids``, with all their siblings.

    Siblings are sockets that share an address (SO_REUSEPORT), also of other processes. Addresses are those of this
    process's network namespace. The processes ``except_`` (this one, the binder and its keeper) are no holders. The
    caller closes the result.
    """
    search = _Search(except_)
    try:
        for pid in pids:
            search.add_process(pid)
        for address in [*addresses, *search.addresses()]:
            search.add_address(address, is_asked=address in addresses)
        return search.result()
    except BaseException:
        search.close()
        raise


class _Search:
    def __init__(self, except_: Collection[int]) -> None:
        self._except = {os.getpid(), *except_}
        # By inode: copies of listeners; the processes of each; the address under which one was asked for.
        self._copies: dict[int, socket.socket] = {}
        self._holders: dict[int, dict[int, None]] = {}
        self._asked: dict[int, Address] = {}
        # By inode: the processes of a socket on an address that was asked for, which may not be copied.
        self._denied: dict[int, dict[int, None]] = {}
        #: Inodes of sockets that are no listeners.
        self._others: set[int] = set()
        self._unreadable: dict[int, None] = {}

    def add_process(self, pid: int) -> None:
        """Add all listeners of a process."""
        if pid in self._except:
            return
        try:
            for table in sockets_of(pid):
                for descriptor, inode in table.sockets:
                    self._add(inode, Place(pid, table.threads[0], descriptor))
        except PermissionError:
            if is_program(pid):
                self._unreadable[pid] = None
        except OSError:
            pass  # it has ended

    def add_address(self, address: Address, *, is_asked: bool) -> None:
        """Add all sockets on an address, of whatever process."""
        inodes = kinds.of_address(address).colliding_inodes(address)
        seen = scan(inodes, self._except) if inodes else None
        for process in seen.processes if seen else ():
            for descriptor, inode in process.sockets:
                place = Place(process.pid, process.threads[0], descriptor)
                try:
                    self._add(inode, place, only=address)
                except PermissionError:
                    self._denied.setdefault(inode, {})[process.pid] = None
                sock = self._copies.get(inode)
                if is_asked and (_is_bound_to(sock, address) if sock is not None else inode in self._denied):
                    self._asked[inode] = address
        if seen and not seen.complete:
            known = {inode for each in seen.processes for _, inode in each.sockets}
            # Connections of Unix sockets have the address of their listener, and may have ended meanwhile.
            if (inodes - known) & kinds.of_address(address).colliding_inodes(address):
                self._unreadable |= dict.fromkeys(seen.unreadable)

    def addresses(self) -> list[Address]:
        """Return the addresses of the listeners that were found so far in this network namespace."""
        found = (_address_of(sock) for sock in self._copies.values() if netns_cookie_of(sock) == own_cookie())
        return list(dict.fromkeys(address for address in found if address is not None))

    def result(self) -> Found:
        listeners = [self._adoptable(inode, sock) for inode, sock in self._copies.items()]
        for inode, pids in self._denied.items():
            if inode not in self._copies:
                listeners.append(Adoptable(self._asked.get(inode), None, _processes(pids), _RIGHTS))
        listeners.sort(key=lambda each: (each.shown, [holder.pid for holder in each.holders]))
        return Found(tuple(listeners), _processes(self._unreadable))

    def close(self) -> None:
        for sock in self._copies.values():
            sock.close()

    def _add(self, inode: int, place: Place, only: Address | None = None) -> None:
        """Add a socket if it is a listener, on the address ``only`` unless that is None. Raises PermissionError."""
        if inode in self._others:
            return
        if inode not in self._copies:
            try:
                sock = duplicate_socket(place.pid, place.descriptor, place.thread)
            except PermissionError:
                raise
            except OSError:
                return  # the process has closed it, or ended
            if not _is_listener(sock):
                sock.close()
                self._others.add(inode)
                return
            if only is not None and not _is_bound_to(sock, only):
                sock.close()
                return
            self._copies[inode] = sock
        self._holders.setdefault(inode, {})[place.pid] = None

    def _adoptable(self, inode: int, sock: socket.socket) -> Adoptable:
        holders, asked, kind = _processes(self._holders[inode]), self._asked.get(inode), kinds.of_socket(sock)
        address = asked or _address_of(sock)
        if kind is not None and address is not None and asked is None:
            address = name_for_next_server(kind, sock, address, holders)
        if kind is None or address is None:
            return Adoptable(None, sock, holders, "multibinder has no kind for this sort of socket")
        obstacle = ""
        if not kind.is_reachable(sock, address):
            obstacle = "clients do not reach it at this address: its path leads elsewhere, or it is shut down"
        elif asked is None and not kind.accepts(address) and _is_for_clients(address):
            obstacle = "its port is one that the kernel chooses for clients; give the address to adopt it all the same"
        elif asked is None and makes_path_anew(address, holders):
            obstacle = "this program makes the path anew at each reload; give the address to adopt it all the same"
        return Adoptable(address, sock, holders, obstacle, habits_of(address, holders), netns_cookie_of(sock))


def _is_listener(sock: socket.socket) -> bool:
    """Return whether clients can come to this socket by its address. A connected one has its client already."""
    kind = kinds.of_socket(sock)
    if kind is None:
        try:
            return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        except OSError:
            return False
    try:
        return not is_connected(sock) and kind.is_ready(sock) and bool(sock.getsockname())
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise


def _is_bound_to(sock: socket.socket, address: Address) -> bool:
    kind = kinds.of_address(address)
    return kinds.of_socket(sock) is kind and kind.is_bound_to(sock, address)


def _address_of(sock: socket.socket) -> Address | None:
    with contextlib.suppress(AddressError, OSError):
        return kinds.address_of(sock)
    return None


def _is_for_clients(address: Address) -> bool:
    """Return whether the kernel gives this port to sockets of clients (ip(7), ip_local_port_range)."""
    endpoint = address.ip_endpoint
    if endpoint is None:
        return False
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range") as setting:
            low, high = map(int, setting.read().split())
    except (OSError, ValueError):
        return False
    return low <= endpoint.port <= high


def _processes(pids: Iterable[int]) -> tuple[Process, ...]:
    return tuple(Process(pid, name_of(pid)) for pid in sorted(pids))
