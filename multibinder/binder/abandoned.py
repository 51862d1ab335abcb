"""Handoffs that were pending when an earlier binder was killed: no connection is left on which to confirm them."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from multibinder.binder.handoffs import Handoffs
from multibinder.binder.listener import Grant, Listener
from multibinder.binder.loop import Loop
from multibinder.binder.quotas import Limits
from multibinder.kernel import process
from multibinder.kernel.socket_options import cookie_of
from multibinder.wire.status import ListenerHealth

#: To search more descriptors than these would take too long for the loop.
_DESCRIPTORS_MAX = 10_000


class Looks(Protocol):
    """Finds out who holds the listeners (``HealthMonitor``)."""

    @property
    def looked_at(self) -> float | None: ...
    def look(self, on_looked: Callable[[], None], /) -> None: ...
    def health(self, listeners: Sequence[Listener], /) -> Sequence[ListenerHealth]: ...


def settle(loop: Loop, handoffs: Handoffs, looks: Looks, clients: Iterable[socket.socket], limits: Limits) -> None:
    """Settle the pending grants of all but these connected clients, after the time that a client has for an answer.

    A client that still needs its listener has asked for it again by then. The grants of a listener that no process
    holds are taken back. If a process holds it, they count as confirmed: perhaps the binder was killed just before it
    read the client's word. Where not all processes can be seen, the client that asked decides: a grant is pending for
    seconds, in which the client rarely passes the descriptor on and ends.
    """
    grants = handoffs.of_others([cookie_of(client) for client in clients] if handoffs else ())
    if not grants:
        return

    def look() -> None:
        before = looks.looked_at
        looks.look(lambda: decide(before))

    def decide(before: float | None) -> None:
        if looks.looked_at == before:
            loop.call_later(limits.timeout_s, look)  # The look has failed.
            return
        handoffs.confirm(grant for grant in grants if _may_be_held(looks, grant))
        handoffs.take_back(grants)

    loop.call_later(limits.timeout_s, look)


def _may_be_held(looks: Looks, grant: Grant) -> bool:
    if grant.settled or grant.listener.socket.fileno() < 0:
        return False
    [health] = looks.health([grant.listener])
    if health.holders is not None:
        return bool(health.holders)
    return _may_have_open(grant.receiver.pid, health.inode)


def _may_have_open(pid: int, inode: int) -> bool:
    """Return whether a process has a socket open. True if that cannot be known."""
    if not pid:
        return True
    try:
        if process.stat_of(pid).start_ticks > process.stat_of(os.getpid()).start_ticks:
            return False  # Another process has the PID now.
        descriptors = os.listdir(f"/proc/{pid}/fd")
        if len(descriptors) > _DESCRIPTORS_MAX:
            return True
        return any(_is_socket(f"/proc/{pid}/fd/{descriptor}", inode) for descriptor in descriptors)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True


def _is_socket(path: str, inode: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.readlink(path) == f"socket:[{inode}]"
    return False
