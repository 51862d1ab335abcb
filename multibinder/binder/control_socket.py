"""The control socket: its file, its lock, and the rights to connect to it."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat
from types import TracebackType

from multibinder.binder import events
from multibinder.binder.control_lock import (
    ControlSocketError,
    already_served,
    cannot_create,
    is_at,
    release_lock,
    take_lock,
)
from multibinder.binder.inherit import CONTROL, LOCK
from multibinder.kernel import files
from multibinder.kernel.socket_options import peer_credentials, refuse_descriptors
from multibinder.wire.errors import ConfigurationError, MultibinderError

#: sizeof(sun_path), less the NUL that unix(7) asks for.
PATH_BYTES = 107
#: Clients that may wait for their accept().
_BACKLOG = 1024


class ControlSocket:
    """A socket that listens at ``path`` until the end of a ``with`` block, which closes it and removes its file.

    ``detach`` before the end gives the socket and the lock away; then the file stays. ``lock`` is None for a socket
    unit's socket, whose file is systemd's. ``file`` is what lstat(2) returned for the file to remove, None for none.
    """

    def __init__(self, path: str, sock: socket.socket, lock: int | None, file: os.stat_result | None) -> None:
        self.path = path
        self.socket = sock
        self._lock = lock
        self._file = file

    def warn_who_may_connect(self, *, has_policy: bool) -> None:
        """Log a warning if other users can connect, and no policy restricts their requests."""
        try:
            status = os.stat(self.path)
        except OSError:
            return
        mode = stat.S_IMODE(status.st_mode)
        who = "everybody" if mode & 0o002 else f"group {_group_name(status.st_gid)}" if mode & 0o020 else None
        if who is not None and not has_policy:
            events.warning(
                "open-to-others",
                mode=f"{mode:04o}",
                who=who,
                why="all who can connect may bind any address that this binder may bind, and get every listener; a "
                "policy file restricts that ('multibinder policy --help')",
            )

    def for_keeper(self) -> list[tuple[str, int | socket.socket]]:
        """Return the names and descriptors to keep through a crash; none for a socket unit's socket."""
        return [] if self._lock is None else [(CONTROL, self.socket), (LOCK, self._lock)]

    def detach(self) -> list[tuple[str, int]]:
        """Give the socket and the lock to the caller: their names and descriptors."""
        descriptors = [(CONTROL, self.socket.detach())]
        if self._lock is not None:
            descriptors.append((LOCK, self._lock))
        self._lock = self._file = None
        return descriptors

    def close(self) -> None:
        self.socket.close()
        if self._file is not None:
            _remove(self.path, self._file)
            self._file = None
        if self._lock is not None:
            release_lock(self.path, self._lock)
            self._lock = None

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

    ``mode`` and ``group`` say who may connect to a new socket. No other user can connect at any moment. ``inherited``
    and ``lock`` belong to the control socket from now on. Raises ControlSocketError if another binder serves the path,
    another file is in the way, or another user could replace the socket.
    """
    if (size := len(os.fsencode(path))) > PATH_BYTES:
        raise ControlSocketError(
            f"{path}: the path has {size} bytes, a Unix socket's may have {PATH_BYTES} "
            "(sun_path, unix(7)); choose a shorter one"
        )
    if inherited is not None and (lock is None or not _was_removed(path, lock)):
        return _take_over(path, inherited, lock)
    if lock is not None:
        os.close(lock)  # else it would exclude ourselves
    try:
        control = _create(path, mode, group)
    except MultibinderError as error:
        if inherited is None:
            raise
        # Clients that are connected, and the listeners, are worth more than the path.
        events.error("control-socket-lost", why=error)
        return _take_over(path, inherited, None)
    if inherited is not None:
        inherited.close()
    return control


def _take_over(path: str, inherited: socket.socket, lock: int | None) -> ControlSocket:
    refuse_descriptors(inherited)
    try:
        _check_directory(path)
    except MultibinderError as error:
        events.error("directory-unsafe", why=error)  # not refused: clients may be connected already
    file = None
    if lock is not None:
        with contextlib.suppress(OSError):
            file = os.lstat(path)
    return ControlSocket(path, inherited, lock, file)


def _create(path: str, mode: int, group: str | None) -> ControlSocket:
    _check_directory(path)
    group_id = None if group is None else _group_id(group)
    with contextlib.ExitStack() as undo:
        lock = take_lock(path)
        undo.callback(release_lock, path, lock)
        try:
            _remove_stale(path)
            sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            _bind(sock, path, mode if group_id is None else mode & 0o700)
            file = os.lstat(path)
            undo.callback(_remove, path, file)
            if group_id is not None:
                _give_to_group(path, mode, group_id, str(group))
            refuse_descriptors(sock)
            sock.listen(_BACKLOG)
        except OSError as error:
            raise cannot_create(path, error) from error
        undo.pop_all()
    return ControlSocket(path, sock, lock, file)


def _check_directory(path: str) -> None:
    """Raise ControlSocketError if another user could replace what is made in the directory of ``path``."""
    directory = os.path.dirname(path) or "."
    try:
        for distrust in files.reasons_for_distrust(directory):
            _refuse_or_warn(directory, distrust)
    except OSError as error:
        raise cannot_create(path, error) from error


def _refuse_or_warn(directory: str, distrust: files.Distrust) -> None:
    path, status = distrust.path, distrust.status
    if distrust.reason == "group":
        # Members of root's group are trusted as root is.
        if status.st_gid != 0:
            why = f"group {status.st_gid} may write in {path}, and so replace the files that we make"
            events.warning("directory-doubtful", why=why)
        return
    if distrust.reason == "others":
        raise ControlSocketError(
            f"everybody may write in {path} (mode {distrust.mode}), and so replace the files that we make in "
            f"{directory}; 'chmod o-w {path}', or choose another directory"
        )
    raise ControlSocketError(
        f"{path} belongs to uid {status.st_uid}, who could replace the files that we make in {directory}; "
        "choose a directory of root or of this user, as /run/multibinder"
    )


def _was_removed(path: str, lock: int) -> bool:
    """Return whether a kept socket has lost its file, and a new one can be made.

    A binder that stops removes the file. The keeper may have the socket still, but no client could connect to it.
    """
    return os.path.isdir(os.path.dirname(path) or ".") and not (is_at(lock, f"{path}.lock") and os.path.exists(path))


def _remove_stale(path: str) -> None:
    """Remove a socket file on which no process listens. Raises ControlSocketError for anything else at ``path``."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ControlSocketError(f"{path} exists and is not a socket; it is left alone. Choose another --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            raise already_served(path, "") from None  # its queue is full, so it is alive
        raise already_served(path, str(peer_credentials(probe).pid))


def _bind(sock: socket.socket, path: str, mode: int) -> None:
    # bind(2) makes the file with 0777 less the umask.
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(path)
    finally:
        os.umask(before)


def _give_to_group(path: str, mode: int, group_id: int, group: str) -> None:
    """Change the group, and only then the mode, which has the group's bits.

    Neither call follows a link that another process puts there meanwhile.
    """
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                raise ControlSocketError(
                    f"{path}: another process has replaced the control socket; see who may write there"
                )
            os.chown(f"/proc/self/fd/{descriptor}", -1, group_id)
            os.chmod(f"/proc/self/fd/{descriptor}", mode)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ControlSocketError(
            f"{path}: cannot give the control socket to group {group}: {(error.strerror or str(error)).lower()}; "
            "run as root or as a member of it"
        ) from error


def _remove(path: str, file: os.stat_result) -> None:
    """Remove a file, unless it has been removed, or another file has its name by now."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.lstat(path), file):
            os.unlink(path)


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigurationError(f"--group {group}: there is no such group (see 'getent group')") from None
