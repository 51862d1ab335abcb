"""Give a listener to a child that multiprocessing spawns, as multiprocessing gives it plain sockets.

multiprocessing registers how it pickles ``socket.socket``, for exactly this type, and not for subclasses. Its pickler
passes a descriptor to the process that will unpickle it (multiprocessing.reduction.DupFd). Other picklers refuse
sockets.
"""

from __future__ import annotations

import socket
import sys
from typing import Protocol


class _Descriptor(Protocol):
    def detach(self) -> int: ...


def reduce_for_multiprocessing(listener: socket.socket) -> tuple[object, ...] | None:
    """Return what ``__reduce_ex__``, which calls this, has to return; None if the pickler is not multiprocessing's."""
    reduction = sys.modules.get("multiprocessing.reduction")
    # The pickler is written in C: the frame that called __reduce_ex__ is the one that called the pickler.
    if reduction is None or sys._getframe(2).f_globals is not vars(reduction):
        return None
    descriptor = reduction.DupFd(listener.fileno())
    return _rebuild, (
        type(listener), descriptor, int(listener.family), int(listener.type), listener.proto, listener.gettimeout(),
        getattr(listener, "shard", 0), getattr(listener, "netns", ""),
    )  # fmt: skip


def _rebuild(
    kind: type[socket.socket],
    descriptor: _Descriptor,
    family: int,
    type: int,  # noqa: A002
    proto: int,
    timeout: float | None,
    shard: int,
    netns: str,
) -> socket.socket:
    listener = kind(family, type, proto, fileno=descriptor.detach())
    listener._local.place = (shard, netns)  # type: ignore[attr-defined]
    listener.settimeout(timeout)
    return listener
