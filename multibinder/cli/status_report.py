"""Join the binder's status with the holders that this process can see: the report of ``multibinder status``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from multibinder import BinderStatus, Client, HolderStatus, ListenerHealth, MultibinderError, RequestError
from multibinder.kernel.process import parent_of
from multibinder.observe.holders import Holder, holders_of
from multibinder.wire.messages import METHOD_NOT_FOUND

#: A descriptor in flight to a client belongs to no process. A listener is an orphan if it has no holder now, and none
#: after this time.
_SECOND_SCAN_S = 0.2
#: The version of ``Report``. Added fields do not raise it; a change of an existing field does.
FORMAT = 1
#: The states of a listener, the worst first.
STATES = ("orphan", "stalled", "repaired", "draining", "serving")


class Row(ListenerHealth, frozen=True, kw_only=True):
    """A listener of the report. ``holders_complete`` is True if no holder can be hidden from this command."""

    holders_complete: bool = False


class Report(msgspec.Struct, frozen=True):
    """The document that ``--json`` prints.

    ``at`` is when the binder was asked, in seconds since the epoch. ``hidden_users`` are the user ids of processes
    that this command may not read. ``binder`` is BinderStatus without ``format`` and ``listeners``.
    """

    format: int
    at: float
    hidden_users: Sequence[int]
    binder: Mapping[str, Any]
    listeners: Sequence[Row]


class _VisibleHolders(msgspec.Struct, frozen=True):
    """The holders of each inode that this process sees, without the binder and its keeper.

    ``complete`` is True if no holder can be hidden.
    """

    by_inode: Mapping[int, Sequence[Holder]]
    complete: bool
    hidden_users: Sequence[int]

    def of(self, inode: int) -> Sequence[Holder]:
        return self.by_inode.get(inode, ())


def report_of(client: Client) -> Report:
    """Return the report of this binder. Raises MultibinderError."""
    return _complete(_ask(client))


def _ask(client: Client) -> BinderStatus:
    """Return the binder's status. Raises MultibinderError, which explains what to do if the binder is too old."""
    try:
        return client.status()
    except RequestError as error:
        if error.code != METHOD_NOT_FOUND:
            raise
        client.close()  # the Ruby program may serve only one connection at a time
        raise MultibinderError(_too_old(client.socket_path)) from error


def _complete(status: BinderStatus) -> Report:
    """Return the status with the holders that only this process sees: the operator may be root, unlike the binder."""
    visible = _visible_holders(status)
    orphans = {each.inode for each in status.listeners if each.holders is None and not visible.of(each.inode)}
    if orphans and visible.complete:
        time.sleep(_SECOND_SCAN_S)
        visible = _visible_holders(status)
        orphans = {inode for inode in orphans if visible.complete and not visible.of(inode)}
    else:
        orphans = set()
    rows = [_row(listener, visible, listener.inode in orphans) for listener in status.listeners]
    rows.sort(key=lambda row: STATES.index(row.state) if row.state in STATES else 0)
    binder = msgspec.structs.asdict(status)
    del binder["format"], binder["listeners"]
    return Report(FORMAT, time.time(), visible.hidden_users, binder, rows)


def _row(listener: ListenerHealth, visible: _VisibleHolders, is_orphan: bool) -> Row:
    holders = [HolderStatus(each.pid, each.name, each.role) for each in visible.of(listener.inode)]
    if listener.holders is not None and not visible.complete:
        # The binder and this process may see different holders. If one of them may not read a process, it sees the
        # role as 'holding', so another role takes precedence.
        precise = {each.pid: each for each in listener.holders if each.role != "holding"}
        holders = [*{each.pid: each for each in [*listener.holders, *holders, *precise.values()]}.values()]
    # The binder reports an empty list only when no holder can be hidden from it.
    complete = visible.complete or listener.holders == []
    fields = {name: getattr(listener, name) for name in ListenerHealth.__struct_fields__}
    fields["holders"] = holders if holders or complete else None
    if is_orphan:
        fields["state"] = "orphan"
    return Row(**fields, holders_complete=complete)


def _visible_holders(status: BinderStatus) -> _VisibleHolders:
    inodes = [listener.inode for listener in status.listeners]
    if not inodes:
        return _VisibleHolders({}, True, ())
    found = holders_of(inodes)
    # If the binder's own copies are not visible, neither are others: the binder may be in another PID namespace.
    sees_binder = any(holder.pid == status.pid for holder in found.of(inodes[0]))
    keeper = parent_of(status.pid) if sees_binder and status.keeper is not None else 0
    parents: dict[int, int] = {}

    def counts(holder: Holder) -> bool:
        if holder.pid in (status.pid, keeper):
            return False
        if holder.pid not in parents:
            parents[holder.pid] = parent_of(holder.pid)
        # A child of the binder is its process that scans /proc, and not a holder.
        return not sees_binder or parents[holder.pid] not in (0, status.pid) or holder.pid == 1

    by_inode = {inode: [holder for holder in holders if counts(holder)] for inode, holders in found.by_inode.items()}
    return _VisibleHolders(by_inode, sees_binder and not found.hidden, found.hidden_users)


def _too_old(socket_path: str) -> str:
    with Client(socket_path) as client:  # a new one, because the Ruby program may serve one request on a connection
        hello = client.hello()
    if not hello.protocol:
        return (
            f"the program at {socket_path} is the Ruby multibinder, which does not report on its listeners; "
            "'ss -ltnp', as root, shows what it holds"
        )
    return (
        f"the binder at {socket_path} is older than this command (version {hello.version}) and does not know 'status'; "
        "bring it up to date with 'multibinder upgrade', or see 'multibinder list'"
    )
