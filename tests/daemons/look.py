"""See what a daemon does to the listener that it gets: to its backlog, its O_NONBLOCK and its path, and at its end."""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from multibinder.wire import kinds
from multibinder.wire.kinds.kind import Kind
from tests.support.addresses import is_nonblocking
from tests.support.restarts import SERVES_S, Copies

T = TypeVar("T")

_EVERY_S = 0.001


@dataclass(frozen=True, slots=True)
class Seen:
    """What a daemon did to its listener.

    ``queues`` are the limits of the queue, in connections, or bytes of datagrams, and ``nonblocking`` the values of
    O_NONBLOCK, each in their order in time.
    """

    queues: list[int]
    nonblocking: list[bool]
    end: str

    def __str__(self) -> str:
        return f"queue {_and_then(self.queues)}, O_NONBLOCK {_and_then(self.nonblocking)}, at its end {self.end}"


def _and_then(values: list[int] | list[bool]) -> str:
    return " then ".join(str(int(value)) for value in values)


class Watch:
    """Note each change of a listener that this process has open too, while the block runs."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        kind = kinds.of_socket(listener)
        assert kind is not None
        self._kind: Kind = kind
        self.queues: list[int] = []
        self.nonblocking: list[bool] = []
        self._look()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _look(self) -> None:
        _note(self.queues, self._kind.queue(self._listener).limit)
        _note(self.nonblocking, is_nonblocking(self._listener))

    def _run(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._look()

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()


def _note(values: list[T], value: T) -> None:
    if not values or values[-1] != value:
        values.append(value)


def look_at(listener: socket.socket, running: Copies) -> Seen:
    """Start and stop a daemon. This process has its listener open too."""
    changed = _changed(listener)
    with Watch(listener) as watch:
        running.start()
        threading.Event().wait(SERVES_S)
        running.stop()
    removed = "" if _changed(listener) == changed else "the binder puts its path back, and "
    return Seen(watch.queues, watch.nonblocking, removed + _end(listener))


def _changed(listener: socket.socket) -> int | None:
    """Return when the inode of a path was changed: its mode, its owner, or its number of links, as unlink() does."""
    address = listener.getsockname()
    try:
        return os.stat(address).st_ctime_ns if isinstance(address, str) else None
    except FileNotFoundError:
        return None


def _end(listener: socket.socket) -> str:
    """Return what is left of a listener whose server has ended."""
    address = listener.getsockname()
    if isinstance(address, str) and address[0] != "\0" and not Path(address).exists():
        return "the path is gone"
    if listener.type == socket.SOCK_DGRAM:
        return "it is open"
    with socket.socket(listener.family, socket.SOCK_STREAM) as client:
        try:
            client.settimeout(1)
            client.connect(address)
        except OSError as error:
            return f"a client gets {os.strerror(error.errno or 0)}"
    return "it is open"
