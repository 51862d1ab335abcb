"""Report sockets that would not survive a crash of the binder: without a keeper, or without room in its store."""

from __future__ import annotations

from collections.abc import Iterator

from multibinder.observe.doctor.facts import Facts
from multibinder.observe.doctor.finding import Finding

_NEARLY_FULL = 0.9


#: A finding names so many listeners.
_NAMED = 5


def unkept(facts: Facts) -> Iterator[Finding]:
    """Report listeners that the keeper does not have."""
    if facts.keeper is None or facts.keeper.kind not in ("guard", "systemd") or facts.keeper.limit == 0:
        return
    lost = [held.address for held in facts.binder.listeners if held.kept is False] if facts.binder else []
    if lost:
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        yield Finding(
            "unkept",
            "warning",
            f"{len(lost)} of {len(facts.binder.listeners) if facts.binder else 0} listeners are not kept",
            ", ".join(lost[:_NAMED]) + more,
            "If the binder crashes, each of them that no other process holds is closed, and its clients are reset. The "
            "binder tries again every 15 s; the log of the binder, or of its guard, says why it fails",
            "raise the keeper's limit: LimitNOFILE= for the guard"
            if facts.keeper.kind == "guard"
            else f"systemctl edit {facts.keeper.unit}   # [Service] FileDescriptorStoreMax=, LimitNOFILE=",
        )


def keeper(facts: Facts) -> Iterator[Finding]:
    """Report a binder without a keeper, a store that is nearly full, and a unit that systemd has not loaded again."""
    if facts.keeper is None:
        return
    found = facts.keeper
    pid = facts.binder.pid if facts.binder else None
    if found.kind == "none" or (found.kind == "systemd" and found.limit == 0):
        by_systemd = found.kind == "systemd"
        yield Finding(
            "store",
            "warning",
            f"{found.unit} has no descriptor store"
            if by_systemd
            else "no process keeps the sockets while the binder is dead",
            f"the binder{f' (pid {pid})' if pid else ''}",
            "If it crashes, every listener that no other process holds is closed, and its clients are reset",
            "multibinder systemd install && systemctl daemon-reload && systemctl restart multibinder"
            if by_systemd
            else "multibinder systemd install; or start it with: multibinder serve --guard",
        )
    elif found.limit and found.stored is not None and found.stored >= found.limit * _NEARLY_FULL:
        full = found.stored >= found.limit
        yield Finding(
            "store",
            "problem" if full else "warning",
            f"the descriptor store is {'full' if full else 'nearly full'}: {found.stored} of {found.limit}",
            found.unit,
            "systemd drops what does not fit and does not tell the binder: those listeners would not survive its crash",
            f"systemctl edit {found.unit}   # [Service] FileDescriptorStoreMax={found.limit * 4}",
        )
    if found.unit_changed:
        yield Finding(
            "unit",
            "warning",
            "the unit on disk is not the one that systemd has loaded",
            found.unit,
            "The change has no effect yet",
            "systemctl daemon-reload",
        )
