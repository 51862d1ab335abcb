"""Make listeners listen with their own backlog, and undo what their holders do to them.

A holder may shut a shared socket down, or call listen(2) with another backlog. Both take effect for every holder.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from multibinder.binder import events
from multibinder.binder.bind_refusal import BindRefusals
from multibinder.binder.listener import Listener
from multibinder.kernel.accept_queue import accept_queue
from multibinder.wire.errors import BindError
from multibinder.wire.listener import listen


def start_listening(listener: Listener, refusals: BindRefusals, uid: int) -> None:
    """Let a new listener listen. Raises BindError, for a client of ``uid``."""
    try:
        set_backlog(listener)
    except OSError as error:
        raise refusals.of(listener.address, error, uid) from error


def is_listening(listener: Listener) -> bool:
    return accept_queue(listener.socket).listening


def listen_again(listener: Listener, refusals: BindRefusals, uid: int) -> None:
    """Let a listener listen again after a holder has shut it down. Raises BindError, for a client of ``uid``."""
    try:
        _bind_again(listener)
        set_backlog(listener)
    except OSError as error:
        raise refusals.of(listener.address, error, uid) from error
    listener.note_repair()
    events.warning("repaired", address=listener.address, why="a holder had shut the socket down")


def set_backlog(listener: Listener) -> None:
    """Call listen(2) with the listener's backlog, and note the queue limit that the kernel made of it."""
    listen(listener.socket, listener.options.backlog)
    listener.queue_limit = accept_queue(listener.socket).limit


def repair_all(listeners: Iterable[Listener], refusals: BindRefusals) -> None:
    """Repair each listener. A check takes some microseconds. A listener that cannot be repaired is logged."""
    allowed = _somaxconn()
    for listener in listeners:
        try:
            _repair(listener, refusals, allowed)
        except (OSError, BindError) as error:
            events.error("cannot-repair", address=listener.address, why=error)


def _repair(listener: Listener, refusals: BindRefusals, allowed: int) -> None:
    """``allowed`` is the longest accept queue that the kernel allows now: a raised limit is used."""
    queue = accept_queue(listener.socket)
    if not queue.listening:
        listen_again(listener, refusals, os.geteuid())
    elif queue.limit == listener.queue_limit < min(listener.options.backlog or allowed, allowed):
        set_backlog(listener)
        events.info("backlog-raised", address=listener.address, was=queue.limit, now=listener.queue_limit)
    elif queue.limit != listener.queue_limit:
        set_backlog(listener)
        listener.note_repair()
        events.warning("backlog-restored", address=listener.address, was=queue.limit, now=listener.queue_limit)


def _bind_again(listener: Listener) -> None:
    # A port that the kernel chose itself is given up when the socket stops listening (inet_put_port() without
    # SOCK_BINDPORT_LOCK), though getsockname() goes on to show it; the next listen() would choose another.
    try:
        listener.socket.bind(listener.address.sockaddr)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: the socket still has its port
            raise


def _somaxconn() -> int:
    try:
        with open("/proc/sys/net/core/somaxconn") as setting:
            return int(setting.read())
    except OSError:
        return 0
