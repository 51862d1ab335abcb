"""The guard's socket: a datagram socket with a file that only the guard's own user can reach."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable, Sequence

from multibinder.binder import events
from multibinder.kernel import files

#: The names of the sockets on their way to the next guard. Older guards know only ``notify``, and only with an abstract
#: address.
WITH_FILE, ABSTRACT = "notify-path", "notify"
#: sizeof(sun_path), less the NUL that unix(7) asks for.
_PATH_BYTES = 107
#: How often the guard looks whether its file is there, and the most sockets that it has at once.
LOOK_EVERY_S = 5.0
_MOST_SOCKETS = 4


class GuardSocket:
    """The sockets on which the guard receives messages (sd_notify(3)). It owns them, and the file of the newest one.

    The newest socket has a file at ``path``, which the next binder gets as $NOTIFY_SOCKET. A running binder may be
    connected to an older one, whose file has been removed, or to the abstract one of an older guard. ``inherited`` are
    the sockets of the guard before this one, the oldest first.
    """

    def __init__(self, path: str, inherited: Iterable[socket.socket] = ()) -> None:
        self._wanted = os.path.abspath(path)
        self._sockets = list(inherited)
        for sock in self._sockets:
            sock.setblocking(False)
        self._path = ""
        self._file: os.stat_result | None = None
        if self._sockets and not self.address.startswith("@"):
            with contextlib.suppress(OSError):
                # This guard has bound the path, so a socket there that belongs to our user is taken for ours.
                file = os.lstat(self.address)
                if stat.S_ISSOCK(file.st_mode) and file.st_uid == os.geteuid():
                    self._path, self._file = self.address, file

    @property
    def address(self) -> str:
        """Return the value of $NOTIFY_SOCKET for the next binder."""
        name: str | bytes = self._sockets[-1].getsockname()
        return name if isinstance(name, str) else "@" + name[1:].decode(errors="surrogateescape")

    def sockets(self) -> list[socket.socket]:
        return list(self._sockets)

    def renew(self) -> None:
        """Make a new socket if the newest one has no file. Call it before a binder is started.

        Raises OSError if there is no socket yet, and none can be made.
        """
        if self._has_its_file():
            return
        try:
            sock, path = _bound(self._wanted)
        except OSError as error:
            if not self._sockets:
                raise
            events.warning("guard-socket-lost", socket=self._wanted, why=error.strerror, done="the older one is used")
            return
        self._sockets.append(sock)
        self._path, self._file = path, os.lstat(path)

    def look(self) -> list[socket.socket]:
        """Make the file again if another program has removed it: an upgraded binder connects by its path.

        The running binder may be connected to any of the sockets, so they stay. If they become too many, the oldest is
        given to the caller: a binder that is connected to it connects anew when it is closed.
        """
        if not self._sockets or self.address.startswith("@") or self._has_its_file():
            return []
        with contextlib.suppress(OSError):  # it is tried again at the next look
            path = self.address
            self._sockets.append(_bind(path))
            self._path, self._file = path, os.lstat(path)
            why = "another program has removed or replaced it"
            events.warning("guard-socket-gone", socket=path, why=why, done="it is there again")
        return [self._sockets.pop(0)] if len(self._sockets) > _MOST_SOCKETS else []

    def retire_older(self) -> list[socket.socket]:
        """Give all sockets but the newest one to the caller. No binder is connected to them any more."""
        older = self._sockets[:-1]
        del self._sockets[:-1]
        return older

    def close_those_with_file(self) -> None:
        """Close the sockets that an older guard does not know."""
        abstract = [sock for sock in self._sockets if not isinstance(sock.getsockname(), str)]
        self._sockets = [sock for sock in self._sockets if sock not in abstract]
        self.close()
        self._sockets = abstract

    def detach(self) -> list[tuple[str, int]]:
        """Give the descriptors, with their names, to the caller. The file stays."""
        named = []
        for sock in self._sockets:
            has_path = isinstance(sock.getsockname(), str)
            named.append((WITH_FILE if has_path else ABSTRACT, sock.detach()))
        self._sockets.clear()
        return named

    def close(self) -> None:
        """Close the sockets, and remove the file."""
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        if self._has_its_file():
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            if os.path.dirname(self._path) != os.path.dirname(self._wanted):
                with contextlib.suppress(OSError):
                    os.rmdir(os.path.dirname(self._path))
        self._file = None

    def _has_its_file(self) -> bool:
        try:
            return self._file is not None and os.path.samestat(os.lstat(self._path), self._file)
        except OSError:
            return False


def sorted_by_purpose(descriptors: Sequence[tuple[str, int]]) -> tuple[list[socket.socket], dict[str, int]]:
    """Return the guard's sockets, the abstract one first, and the descriptors for the store by their names."""
    sockets: list[tuple[str, socket.socket]] = []
    stored: dict[str, int] = {}
    for name, descriptor in descriptors:
        if name in (ABSTRACT, WITH_FILE):
            sockets.append((name, socket.socket(fileno=descriptor)))
        else:
            # A socket unit gives all its sockets the same name.
            stored[name if name not in stored else f"{name}-{descriptor}"] = descriptor
    return [
        sock for name, sock in sorted(sockets, key=lambda named: (named[0] == WITH_FILE, named[1].fileno()))
    ], stored


def _bound(wanted: str) -> tuple[socket.socket, str]:
    """Return a socket that is bound to ``wanted``, or to a file in a new private directory, and its path."""
    with contextlib.suppress(OSError):
        return _bind(wanted), wanted
    # The path is too long, its directory is missing, or another guard uses it.
    base = "/run" if os.geteuid() == 0 and os.path.isdir("/run") else "/tmp"  # noqa: S108 (mkdir(2) makes it private)
    directory = f"{base}/multibinder-guard-{os.urandom(8).hex()}"
    os.mkdir(directory, 0o700)
    path = f"{directory}/notify"
    try:
        return _bind(path), path
    except OSError:
        os.rmdir(directory)
        raise


def _bind(path: str) -> socket.socket:
    if len(os.fsencode(path)) > _PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        # To connect, a user must be able to write to the file (unix(7)).
        files.bind_socket(sock, path, 0o600)
    except OSError:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    """Remove the file of a guard that has ended. Raises OSError if another guard uses it, or if it is no socket."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
