"""The control socket: it listens at its path, and makes file and lock again when another program removes them."""

from __future__ import annotations

import os
import socket
import stat
from types import TracebackType

from multibinder.binder import control_file, events
from multibinder.binder.control_lock import ControlSocketError, is_at, note_pid, release_lock, take_lock
from multibinder.binder.inherit import CONTROL, LOCK
from multibinder.kernel.socket_options import inode_of, peer_credentials, refuse_descriptors
from multibinder.wire.arguments import PATH_BYTES
from multibinder.wire.errors import MultibinderError


class ControlSocket:
    """The socket that listens at ``path`` until the end of a ``with`` block, which closes it and removes its file.

    ``detach`` before the end gives the socket and the lock away; then the file stays. ``sockets`` has more than one
    socket for a while after ``look`` had to make a new one: clients may wait in the queue of the old one.

    ``lock`` is None for a socket unit's socket, whose file is systemd's. ``file`` is what lstat(2) returned for the
    socket's file, None if there is none. ``was_replaced`` tells whether an inherited socket or lock was replaced.
    """

    def __init__(
        self,
        path: str,
        mode: int,
        group: str | None,
        sock: socket.socket,
        lock: int | None,
        file: os.stat_result | None,
    ) -> None:
        self.path = path
        self.sockets = [sock]
        self._mode = mode
        self._group = group
        self._lock = lock
        self._file = file
        self._is_said = False
        self._is_unit = lock is None
        self._retired: list[socket.socket] = []
        self.was_replaced = False

    def inodes(self) -> set[int]:
        """Return the inodes of the sockets."""
        return {inode_of(sock) for sock in self.sockets}

    def warn_who_may_connect(self, *, has_policy: bool) -> None:
        """Log a warning if other users can connect, and no policy restricts their requests."""
        try:
            status = os.stat(self.path)
        except OSError:
            return
        mode = stat.S_IMODE(status.st_mode)
        group = f"group {control_file.group_name(status.st_gid)}"
        who = "everybody" if mode & 0o002 else group if mode & 0o020 else None
        if who is not None and not has_policy:
            events.warning(
                "open-to-others",
                mode=f"{mode:04o}",
                who=who,
                why="all who can connect may bind any address that this binder may bind, and get every listener; a "
                "policy file restricts that ('multibinder policy --help')",
            )

    def look(self) -> bool:
        """Serve the path again if its file or its lock was removed or replaced. Return whether ``sockets`` has changed.

        Another program may remove files of a long-lived process, as a cleaner of /tmp does. Nothing is raised; what
        cannot be done now, because another binder serves the path or the directory is gone, is done at a later look.
        """
        self._retired += self.sockets[:-1]
        self.sockets = self.sockets[-1:]
        try:
            return self._serve_again() or bool(self._retired)
        except (MultibinderError, OSError) as error:
            if not self._is_said:
                why = f"{error}; connected clients are served, new ones cannot find the binder"
                events.error("control-socket-lost", path=self.path, why=why, done="it is tried again")
            self._is_said = True
            return bool(self._retired)

    def close_retired(self) -> None:
        """Close the sockets that were replaced at a look before the last one, when no loop watches them any more."""
        for sock in self._retired:
            sock.close()
        self._retired.clear()

    def _serve_again(self) -> bool:
        has_file = self._file is not None and _is_same(self.path, self._file)
        has_lock = is_at(self._lock, f"{self.path}.lock") if self._lock is not None else has_file
        if has_file and has_lock:
            self._is_said = False
            return False
        control_file.check_directory(self.path)
        if not has_lock:
            lock = take_lock(self.path)
            if self._lock is not None:
                os.close(self._lock)
            self._lock = lock
        if not has_file:
            sock, self._file = control_file.listen_at(self.path, self._mode, self._group)
            self.sockets.append(sock)
        what = "another program has removed " + ("the lock" if has_file else "or replaced it")
        why = f"{what}; 'systemctl restart' of the socket unit gives it back to systemd" if self._is_unit else what
        events.warning("control-socket-gone", path=self.path, why=why, done="it is served again")
        self._is_said = False
        self.was_replaced = True
        return True

    def for_keeper(self) -> list[tuple[str, int]]:
        """Return the names and descriptors to keep through a crash; none for a socket unit's socket."""
        return [] if self._is_unit or self._lock is None else [(CONTROL, self.sockets[-1].fileno()), (LOCK, self._lock)]

    def detach(self) -> list[tuple[str, int]]:
        """Give the newest socket and the lock to the caller: their names and descriptors."""
        descriptors = [(CONTROL, self.sockets.pop().detach())]
        if self._lock is not None:
            descriptors.append((LOCK, self._lock))
        self._lock = self._file = None
        self.close()
        return descriptors

    def close(self) -> None:
        for sock in (*self.sockets, *self._retired):
            sock.close()
        if self._lock is not None:
            if self._file is not None:
                control_file.remove(self.path, self._file)
            release_lock(self.path, self._lock)
        self._lock = self._file = None

    def __enter__(self) -> ControlSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_control_socket(
    path: str, mode: int, group: str | None, inherited: socket.socket | None = None, lock: int | None = None
) -> ControlSocket:
    """Take over an inherited control socket, or create one.

    ``mode`` and ``group`` say who may connect; a socket unit decides that for its own socket. ``inherited`` and
    ``lock`` belong to the control socket from now on. Without ``inherited``, raises ControlSocketError if another
    binder serves the path, another file is in the way, or another user could replace the socket. With it, nothing is
    raised: clients may be connected, and the path is served again as soon as it can be.
    """
    if inherited is not None:
        return _take_over(path, mode, group, inherited, lock)
    if (size := len(os.fsencode(path))) > PATH_BYTES:
        raise ControlSocketError(
            f"{path}: the path has {size} bytes, a Unix socket's may have {PATH_BYTES} "
            "(sun_path, unix(7)); choose a shorter one"
        )
    control_file.check_directory(path)
    if group is not None:
        control_file.group_id(group)
    if lock is not None and not is_at(lock, f"{path}.lock"):
        os.close(lock)
        lock = None
    if lock is None:
        lock = take_lock(path)  # an inherited one cannot be taken anew: the keeper has a copy that holds it
    try:
        sock, file = control_file.listen_at(path, mode, group)
    except BaseException:
        release_lock(path, lock)
        raise
    return ControlSocket(path, mode, group, sock, lock, file)


def _take_over(path: str, mode: int, group: str | None, inherited: socket.socket, lock: int | None) -> ControlSocket:
    refuse_descriptors(inherited)
    try:
        control_file.check_directory(path)
    except MultibinderError as error:
        events.error("directory-unsafe", why=error)
    bound = os.fsdecode(inherited.getsockname())
    if os.path.isabs(bound) and os.path.abspath(path) != os.path.abspath(bound):
        why = "the socket that was passed on has another path than --socket; clients must use its path"
        events.warning("socket-path-differs", socket=path, serves=bound, why=why)
        path = bound
    if lock is not None:
        # The next connection tells by SO_PEERCRED who called listen(2) last.
        inherited.listen(control_file.BACKLOG)
    file = _file_of(path, None if lock is None else os.getpid())
    if lock is not None and is_at(lock, f"{path}.lock"):
        note_pid(lock)
        if file is not None:
            try:
                control_file.give_rights(path, mode, group)
            except (MultibinderError, OSError) as error:
                events.error("mode-not-set", why=error)
    control = ControlSocket(path, mode, group, inherited, lock, file)
    control.look()
    return control


def _file_of(path: str, pid: int | None) -> os.stat_result | None:
    """Return the lstat(2) of an inherited socket's file, None if it is gone or another file has its name.

    ``pid`` is the process that called listen(2) on the inherited socket; None if that is unknown.
    """
    try:
        file = os.lstat(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(path)
            return file if pid in (None, peer_credentials(probe).pid) else None
    except BlockingIOError:
        return file  # its queue is full
    except OSError:
        return None


def _is_same(path: str, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(path), file)
    except OSError:
        return False
