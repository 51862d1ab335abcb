"""The control socket's path: one binder for each, and no file deleted that is not ours."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
from types import TracebackType

from multibinder.binder import events
from multibinder.binder.inherit import CONTROL, LOCK
from multibinder.kernel import files
from multibinder.kernel.socket_options import peer_credentials, refuse_descriptors
from multibinder.wire.errors import ConfigurationError, MultibinderError

#: sizeof(sun_path), less the NUL that unix(7) asks for.
PATH_BYTES = 107
#: Clients that may wait for their accept().
_BACKLOG = 1024


class ControlSocketError(MultibinderError):
    """The control socket cannot be had; the message says why and what to do."""


class ControlSocket:
    """A socket listening at ``path`` for as long as the block runs; then its file is removed, unless it was left to a
    next self, or came from somebody else (a socket unit's file is systemd's).

    ``mode`` and ``group`` say who may connect: nobody else can at any moment. ``inherited`` and ``lock``, if given,
    are taken instead of new ones. Raises ControlSocketError when another binder serves the path, when something else
    is in the way, or when the directory does not let us.
    """

    def __init__(
        self,
        path: str,
        mode: int,
        group: str | None,
        inherited: socket.socket | None = None,
        lock: int | None = None,
    ) -> None:
        if len(os.fsencode(path)) > PATH_BYTES:
            raise ControlSocketError(
                f"{path}: the path has {len(os.fsencode(path))} bytes, a Unix socket's may have {PATH_BYTES} "
                "(sun_path, unix(7)); choose a shorter one"
            )
        self.path = path
        self._lock = lock
        self._file: os.stat_result | None = None
        if inherited is not None and lock is not None and _was_cleaned_up(path, lock):
            inherited.close()
            os.close(lock)
            inherited = self._lock = None
        if inherited is not None:
            self.socket = inherited
            refuse_descriptors(inherited)
            try:
                self._check_directory()
            except MultibinderError as error:
                events.error("directory-unsafe", why=error)  # too late to refuse: clients may be connected
            with contextlib.suppress(OSError):
                self._file = os.lstat(path) if lock is not None else None
            return
        self._check_directory()
        group_id = -1 if group is None else _group_id(group)
        self._lock = _lock(path)
        try:
            _clear_the_way(path)
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                _bind(self.socket, path, mode if group_id < 0 else mode & 0o700)
                self._file = os.lstat(path)
                if group_id >= 0:
                    _give(path, mode, group_id, group)
                refuse_descriptors(self.socket)
                self.socket.listen(_BACKLOG)
            except OSError as error:
                raise _explained(path, error) from error
        except ControlSocketError:
            self.close()
            raise

    def _check_directory(self) -> None:
        directory = os.path.dirname(self.path) or "."
        try:
            for distrust in files.distrusts(directory):
                self._refuse_or_warn(directory, distrust)
        except OSError as error:
            raise _explained(self.path, error) from error

    @staticmethod
    def _refuse_or_warn(directory: str, distrust: files.Distrust) -> None:
        path, status = distrust.path, distrust.status
        if distrust.reason == "group":
            # Root's group is root's.
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

    def warn_who_may_connect(self, has_policy: bool) -> None:
        """Say in the log what a control socket gives away that others than its owner can connect to."""
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
                why="whoever can connect may bind any address that this binder may, and gets every listener; a policy "
                "file narrows that ('multibinder policy --help')",
            )

    def kept(self) -> list[tuple[str, int]]:
        """The kind and descriptor of each that is ours to keep beyond a crash; a socket unit's is systemd's."""
        return [] if self._lock is None else [(CONTROL, self.socket.fileno()), (LOCK, self._lock)]

    def leave(self) -> list[tuple[str, int]]:
        """Give the socket and the lock to the caller: their kinds and descriptors."""
        kept = [(CONTROL, self.socket.detach())]
        if self._lock is not None:
            kept.append((LOCK, self._lock))
        self._lock = self._file = None
        return kept

    def close(self) -> None:
        if hasattr(self, "socket"):
            self.socket.close()
        with contextlib.suppress(OSError):  # somebody has cleaned up before us
            if self._file is not None and os.path.samestat(os.lstat(self.path), self._file):
                os.unlink(self.path)
        if self._lock is not None:
            with contextlib.suppress(OSError):
                if _is_at(self._lock, f"{self.path}.lock"):
                    os.unlink(f"{self.path}.lock")
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> ControlSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _bind(sock: socket.socket, path: str, mode: int) -> None:
    # bind(2) makes the file with 0777 less the umask.
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(path)
    finally:
        os.umask(before)


def _give(path: str, mode: int, group_id: int, group: str | None) -> None:
    """Until the group is right, its bits stay off. Neither call follows a link that somebody puts there meanwhile."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                raise ControlSocketError(f"{path}: somebody has replaced the control socket; see who may write there")
            os.chown(f"/proc/self/fd/{descriptor}", -1, group_id)
            os.chmod(f"/proc/self/fd/{descriptor}", mode)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ControlSocketError(
            f"{path}: cannot give the control socket to group {group}: {(error.strerror or str(error)).lower()}; "
            "run as root or as a member of it"
        ) from error


def _lock(path: str) -> int:
    """A descriptor that holds the lock: two binders that start together must not both find the path free."""
    lock = f"{path}.lock"
    while True:
        try:
            descriptor = _open_or_create(lock)
        except FileNotFoundError as error:
            if os.path.isdir(os.path.dirname(path) or "."):
                continue  # it was there a moment ago
            raise _explained(path, error) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ControlSocketError(f"{lock} is a link; see who made it, and remove it") from error
            raise _explained(path, error) from error
        try:
            if not files.is_ours(descriptor):
                status = os.fstat(descriptor)
                raise ControlSocketError(
                    f"{lock} is not ours: uid {status.st_uid} made it, mode {stat.S_IMODE(status.st_mode):04o}; "
                    "remove it, or choose another --socket"
                )
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, lock):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                return descriptor
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise _already_served(path, holder) from None
        except ControlSocketError:
            os.close(descriptor)
            raise
        except OSError as error:
            os.close(descriptor)
            raise _explained(path, error) from error
        os.close(descriptor)  # its last owner unlinked the file between our open() and our flock()


def _open_or_create(lock: str) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(lock, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        # Without O_CREAT, so that it is we who say whose it is, not the kernel (protected_regular, proc_sys_fs(5)).
        return os.open(lock, flags)


def _was_cleaned_up(path: str, lock: int) -> bool:
    """Whether a socket of ours that somebody kept has lost its file meanwhile (its last user stopped in good order), so
    that nobody could ever connect to it; and a new one can be made."""
    return os.path.isdir(os.path.dirname(path) or ".") and not (_is_at(lock, f"{path}.lock") and os.path.exists(path))


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _clear_the_way(path: str) -> None:
    """Remove a socket file that nobody listens on any more; complain about anything else that is there."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _explained(path, error) from error
    if not stat.S_ISSOCK(kind):
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
            raise _already_served(path, "") from None  # its queue is full, so it is alive
        except OSError as error:
            raise _explained(path, error) from error
        raise _already_served(path, str(peer_credentials(probe).pid))


def _already_served(path: str, pid: str) -> ControlSocketError:
    who = f"process {pid}" if pid else "another process"
    return ControlSocketError(f"{path} is served by {who} already; stop it first, or choose another --socket")


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


def _explained(path: str, error: OSError) -> ControlSocketError:
    directory = os.path.dirname(path) or "."
    reason = {
        errno.ENOENT: f"the directory {directory} does not exist; create it first",
        errno.EACCES: f"no permission to write in {directory}; run as root, or choose another --socket",
        errno.ENOSPC: f"no space left on the file system of {directory}",
        errno.EROFS: f"{directory} is on a read-only file system",
    }.get(error.errno or 0, error.strerror)
    return ControlSocketError(f"{path}: cannot create the control socket: {reason}")
