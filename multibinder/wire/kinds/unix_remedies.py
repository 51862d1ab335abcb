"""The remedies for refusals of Unix sockets: sentences that follow the kernel's message."""

from __future__ import annotations

import errno
import os

#: The file in systemd/examples/multibinder.service.d/.
_DROP_IN = "drop-in unix-paths.conf"


def option_remedy(option: str, number: int | None) -> str:
    if number == errno.EPERM and option in ("user", "group"):
        return f": to give a socket's file to another {option}, the binder needs CAP_CHOWN ({_DROP_IN})"
    if number == errno.EPERM and option == "mode":
        return f": the file has another owner, so the binder needs CAP_FOWNER ({_DROP_IN})"
    if number in (errno.ENOENT, errno.ELOOP):
        return ": the path does not lead to the socket any more; try again when it has been repaired"
    return ""


def in_use_remedy(address: str, holders: str | None, what: str) -> str:
    """Return what follows the kernel's message if a path or a name is in use, by ``holders``."""
    by = (
        f", by {holders}; take it over with 'multibinder adopt {address}', stop it,"
        if holders
        else "; find who has it ('ss -xlp', as root)"
    )
    return f"{by} or choose another {what}"


def name_remedy(number: int | None) -> str | None:
    """Return what follows the kernel's message if an abstract name cannot be bound, or its socket repaired."""
    if number == errno.ESHUTDOWN:
        return (
            ": a holder has shut the socket down, and its abstract name is free again only when no process has it; "
            "release it, end its holders and bind it again"
        )
    return None


def path_remedy(path: str, number: int) -> str | None:
    """Return what follows the kernel's message if a path cannot be bound."""
    directory = os.path.dirname(path)
    if number == errno.ENOTSOCK:
        return f": {path} is a file of another kind; remove it, or choose another path"
    if number == errno.ELOOP:
        return f": {path} is a symbolic link, or a directory on the way was replaced; remove the link: none is followed"
    if number == errno.ENOENT:
        return f": there is no directory {directory}; create it (RuntimeDirectory= or tmpfiles.d(5)), then bind again"
    if number == errno.ENOTDIR:
        return f": {directory} is no directory"
    if number == errno.EROFS:
        return f": {directory} is read-only to the binder; name it in ReadWritePaths= ({_DROP_IN})"
    if number in (errno.EACCES, errno.EPERM):
        return (
            f": the binder may not create or replace files in {directory}; give it the right, or name the directory in "
            f"ReadWritePaths= and add CAP_DAC_OVERRIDE ({_DROP_IN})"
        )
    return None
