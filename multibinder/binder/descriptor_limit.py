"""The limit on open descriptors (RLIMIT_NOFILE), and the other limits that it restricts."""

from __future__ import annotations

import resource

import msgspec

from multibinder.binder import events
from multibinder.binder.quotas import Limits

#: Descriptors that are neither a listener nor a client: log, selector, signals, notifications, lock, slack.
_RESERVED_DESCRIPTORS = 64


def fit_descriptors(limits: Limits) -> Limits:
    """Raise RLIMIT_NOFILE to its hard limit, and return the limits that fit into it.

    Clients need one descriptor each, and descriptors on their way to them count too.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return limits
    room = max(1, hard - limits.clients - _RESERVED_DESCRIPTORS)
    if room < limits.listeners:
        events.warning(
            "limit-lowered",
            max_listeners=room,
            wanted=limits.listeners,
            why=f"RLIMIT_NOFILE is {hard} and {limits.clients} clients need room; raise LimitNOFILE=",
        )
    # Without privileges, this many may be in flight from all processes of our user (unix(7), ETOOMANYREFS).
    return msgspec.structs.replace(
        limits, listeners=min(room, limits.listeners), in_flight=min(hard // 2, limits.in_flight)
    )
