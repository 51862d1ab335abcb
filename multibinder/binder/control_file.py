"""The file of the control socket: its directory, its creation, its mode and group, its removal."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat

from multibinder.binder import events
from multibinder.binder.control_lock import ControlSocketError, already_served, cannot_create
from multibinder.kernel import files
from multibinder.kernel.socket_options import peer_credentials, refuse_descriptors
from multibinder.wire.errors import ConfigurationError

#: Clients that may wait for their accept().
BACKLOG = 1024


def listen_at(path: str, mode: int, group: str | None) -> tuple[socket.socket, os.stat_result]:
    """Create the control socket, and return it with the lstat(2) of its file. The caller has the lock of the path.

    No other user can connect at any moment. Raises ControlSocketError, and ConfigurationError for an unknown group.
    """
    group_number = None if group is None else group_id(group)
    with contextlib.ExitStack() as undo:
        try:
            remove_stale(path)
            sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            files.bind_socket(sock, path, mode if group_number is None else mode & 0o700)
            file = os.lstat(path)
            undo.callback(remove, path, file)
            if group_number is not None:
                give_rights(path, mode, group)
            refuse_descriptors(sock)
            sock.listen(BACKLOG)
        except OSError as error:
            raise cannot_create(path, error) from error
        undo.pop_all()
    return sock, file


def check_directory(path: str) -> None:
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
        others = "choose a directory of root or of this user, as /run/multibinder"
        remedy = others if distrust.is_sticky else f"'chmod o-w {path}', or {others}"
        raise ControlSocketError(
            f"everybody may write in {path} (mode {distrust.mode}), and so replace the files that we make in "
            f"{directory}; {remedy}"
        )
    raise ControlSocketError(
        f"{path} belongs to uid {status.st_uid}, who could replace the files that we make in {directory}; "
        "choose a directory of root or of this user, as /run/multibinder"
    )


def remove_stale(path: str) -> None:
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


def give_rights(path: str, mode: int, group: str | None) -> None:
    """Give a control socket its group, and only then its mode, which has the group's bits.

    No call follows a link that another process puts there meanwhile. Raises ControlSocketError, and ConfigurationError
    for an unknown group.
    """
    group_number = None if group is None else group_id(group)
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISSOCK(status.st_mode):
                raise ControlSocketError(
                    f"{path}: another process has replaced the control socket; see who may write there"
                )
            file = f"/proc/self/fd/{descriptor}"
            if group_number is not None and group_number != status.st_gid:
                if status.st_mode & 0o077:  # its bits are meant for the group that it had
                    os.chmod(file, mode & stat.S_IMODE(status.st_mode) & 0o700)
                os.chown(file, -1, group_number)
                os.chmod(file, mode)
            elif stat.S_IMODE(status.st_mode) != mode:
                os.chmod(file, mode)
        finally:
            os.close(descriptor)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if group is None:
            raise ControlSocketError(f"{path}: cannot set the mode {mode:04o}: {reason}; run as its owner") from error
        raise ControlSocketError(
            f"{path}: cannot give the control socket to group {group}: {reason}; run as root or as a member of it"
        ) from error


def remove(path: str, file: os.stat_result) -> None:
    """Remove a file, unless it has been removed, or another file has its name by now."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.lstat(path), file):
            os.unlink(path)


def group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigurationError(f"--group {group}: there is no such group (see 'getent group')") from None
