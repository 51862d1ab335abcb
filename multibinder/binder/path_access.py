"""Decide which paths of Unix sockets a client may bind, beside what the policy says.

The binder makes the file with its own rights, which may be more than the client's. Root and the binder's own user may
bind every path.
"""

from __future__ import annotations

import os
from typing import Protocol

from multibinder.binder.owner import is_privileged
from multibinder.kernel.directory_rights import may_create_in, may_replace_in, redirectable
from multibinder.wire.addresses import Address
from multibinder.wire.options import Options


class Client(Protocol):
    """The client that sends a request, as the kernel identifies it."""

    @property
    def uid(self) -> int: ...
    @property
    def gids(self) -> frozenset[int]: ...
    @property
    def is_guest(self) -> bool: ...


def why_not_with_policy(client: Client, address: Address) -> str:
    """Return why a path that a rule grants is refused all the same, as a part of a sentence. Empty if it is not.

    A rule decides by the real path of the directory, so that must be the same when the socket is bound.
    """
    if address.path is None or is_privileged(client.uid):
        return ""
    try:
        part = redirectable(os.path.dirname(address.path))
    except OSError:
        return ""  # to bind it fails, with a better reason
    return _redirected(part)


def why_not_without_policy(client: Client, address: Address, options: Options, *, exists: bool) -> str:
    """Return why a client may not bind a path where there is no policy, as a part of a sentence. Empty if it may.

    It may where it could make the socket itself. A listener that ``exists`` is another user's: the client must have the
    right to replace its file.
    """
    if address.path is None or is_privileged(client.uid):
        return ""
    directory = os.path.dirname(address.path)
    may_not = f"without a policy, uid {client.uid} may only bind a path that it could make itself"
    if client.is_guest:
        return "without a policy, a client of another PID namespace (a container) may bind no path"
    try:
        if not may_create_in(directory, client.uid, client.gids):
            return f"{may_not}, and it may not create files in {directory}"
        if exists and not may_replace_in(directory, client.uid):
            return f"{may_not}, and the files in {directory} are their owners'"
        part = redirectable(directory)
    except OSError:
        return f"{may_not}, and there is no directory {directory} for it"
    if options.user not in (None, client.uid) or (options.group is not None and options.group not in client.gids):
        return f"{may_not}, and it could not give it to another user or group"
    return _redirected(part)


def _redirected(part: str | None) -> str:
    if part is None:
        return ""
    return (
        f"users other than root could replace {part}, so that the path leads elsewhere; bind in a directory whose "
        "parents and links are root's"
    )
