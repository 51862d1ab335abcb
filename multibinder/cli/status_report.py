"""What ``multibinder status`` knows: the binder's answer, and the holders that the command itself sees."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from multibinder import BinderStatus, Client, HolderStatus, ListenerHealth, MultibinderError, RequestError
from multibinder.kernel.process import parent_of
from multibinder.observe.holders import Holder, holders_of
from multibinder.wire.messages import METHOD_NOT_FOUND

#: What is between a handoff and its receiver is in nobody's hands. Who has none now and none so much later is alone.
_SECOND_LOOK_S = 0.2
#: The version of ``Report``; fields may be added, a change of what is there raises it.
FORMAT = 1
#: The worst first.
STATES = ("orphan", "stalled", "repaired", "serving")


class Row(ListenerHealth, frozen=True):
    """``holders_complete``: no process that may not be looked into could be one more."""

    holders_complete: bool


class Report(msgspec.Struct, frozen=True):
    """``at`` is when the binder was asked, in seconds since the epoch. ``hidden_users`` are the user ids of processes
    that this command may not look into; ``binder`` is BinderStatus without ``format`` and ``listeners``."""

    format: int
    at: float
    hidden_users: Sequence[int]
    binder: Mapping[str, Any]
    listeners: Sequence[Row]


class _View(msgspec.Struct, frozen=True):
    """Who has what open, as seen from here, without the binder and those who keep copies for it."""

    by_inode: Mapping[int, Sequence[Holder]]
    complete: bool
    hidden_users: Sequence[int]


def report_of(client: Client) -> Report:
    """Raises MultibinderError."""
    return complete(ask(client))


def ask(client: Client) -> BinderStatus:
    """Raises MultibinderError; with a sentence for binders that do not know what a status is."""
    try:
        return client.status()
    except RequestError as error:
        if error.code != METHOD_NOT_FOUND:
            raise
        client.close()  # it may also serve one connection at a time
        raise MultibinderError(_too_old(client.socket_path)) from error


def complete(status: BinderStatus) -> Report:
    """With the holders that the binder could not see and we can: an operator is root where the binder is not."""
    view = _look(status)
    alone = {each.inode for each in status.listeners if each.holders is None and not view.by_inode.get(each.inode)}
    if alone and view.complete:
        time.sleep(_SECOND_LOOK_S)
        view = _look(status)
        alone = {inode for inode in alone if view.complete and not view.by_inode.get(inode)}
    else:
        alone = set()
    rows = [_row(listener, view, listener.inode in alone) for listener in status.listeners]
    rows.sort(key=lambda row: STATES.index(row.state) if row.state in STATES else 0)
    binder = msgspec.structs.asdict(status)
    del binder["format"], binder["listeners"]
    return Report(FORMAT, time.time(), view.hidden_users, binder, rows)


def _row(listener: ListenerHealth, view: _View, alone: bool) -> Row:
    seen = [HolderStatus(each.pid, each.name, each.role) for each in view.by_inode.get(listener.inode, ())]
    if listener.holders is not None and not view.complete:
        # Each may see what the other does not. Who sees little of a process sees it hold, at most.
        roles = {each.pid: each for each in listener.holders if each.role != "holding"}
        seen = [*{each.pid: each for each in [*listener.holders, *seen, *roles.values()]}.values()]
    # The binder says that there is none only when none can be hidden from it.
    whole = view.complete or listener.holders == []
    fields = {name: getattr(listener, name) for name in ListenerHealth.__struct_fields__}
    fields["holders"] = seen if seen or whole else None
    if alone:
        fields["state"] = "orphan"
    return Row(**fields, holders_complete=whole)


def _look(status: BinderStatus) -> _View:
    inodes = [listener.inode for listener in status.listeners]
    if not inodes:
        return _View({}, True, ())
    found = holders_of(inodes)
    # Where the binder's own copies cannot be seen, others cannot either: it may live in another PID namespace.
    sees_binder = any(holder.pid == status.pid for holder in found.of(inodes[0]))
    parent = parent_of(status.pid) if sees_binder and status.keeper is not None else 0
    parents: dict[int, int] = {}

    def counts(holder: Holder) -> bool:
        if holder.pid in (status.pid, parent):
            return False
        if holder.pid not in parents:
            parents[holder.pid] = parent_of(holder.pid)
        # A child of the binder's is about to look into /proc on its behalf.
        return not sees_binder or parents[holder.pid] not in (0, status.pid) or holder.pid == 1

    by_inode = {inode: [holder for holder in holders if counts(holder)] for inode, holders in found.by_inode.items()}
    return _View(by_inode, sees_binder and not found.hidden, found.hidden_users)


def _too_old(socket_path: str) -> str:
    with Client(socket_path) as client:  # another one: the Ruby program may serve a connection for one request
        hello = client.hello()
    if not hello.protocol:
        return (
            f"the program at {socket_path} is another multibinder (the Ruby one) and tells nothing of its listeners; "
            "'ss -ltnp', as root, shows what it holds"
        )
    return (
        f"the binder at {socket_path} is older than this command (version {hello.version}) and does not know 'status'; "
        "bring it up to date with 'multibinder upgrade', or see 'multibinder list'"
    )
