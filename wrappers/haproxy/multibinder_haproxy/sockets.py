"""The descriptors that HAProxy will inherit: those at hand, those asked of the binder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence

from multibinder import (
    BinderUnavailable,
    Client,
    MultibinderError,
    TcpAddress,
)
from multibinder_haproxy.errors import BinderAway, BindRefused
from multibinder_haproxy.template import Slot

#: A descriptor must be below HAProxy's maxsock, which follows maxconn: so the first ones stay as low as they came.
#: But HAProxy's master counts with a maxconn of 100 for itself, and exits when its own descriptors pass 214 (measured
#: on 2.6.12; 235 on 3.2): so the numbers from here to there are left to it.
_MASTERS_OWN = range(100, 200)


def at_hand(fds: Mapping[str, int]) -> dict[str, int]:
    """Those of ``fds`` that are the listener of their key, by the sockets' own word. Others are not ours to touch."""
    return {key: fd for key, fd in fds.items() if _is_listener(fd, address_of_key(key))}


def address_of_key(key: str) -> TcpAddress:
    """``127.0.0.1:0 (stats)`` names a listener; this is its address as it was asked for."""
    return TcpAddress.parse(key.partition(" ")[0])


def obtain(
    binder: str, slots: Sequence[Slot], owner: str, wait_s: float, timeout_s: float = 10.0
) -> tuple[dict[str, int], list[str]]:
    """New descriptors for ``slots``, inheritable, and the caller's; and what the binder warns of. All or none.

    Waits up to ``wait_s`` for a binder that is not there (yet), and ``timeout_s`` for the answer of one that is.
    Raises BinderAway, BindRefused.
    """
    if not slots:
        return {}, []
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with warnings.catch_warnings(record=True) as caught, Client(binder, timeout=timeout_s) as client:
                warnings.simplefilter("always")
                sockets = client.bind([slot.spec for slot in slots], owner=owner, inheritable=True)
            fds = {slot.key: _place(sock.detach()) for slot, sock in zip(slots, sockets, strict=True)}
            return fds, [str(warning.message) for warning in caught]
        except BinderUnavailable as error:
            if time.monotonic() > deadline:
                waited = f" (waited {wait_s:g} s)" if wait_s else ""
                raise BinderAway(f"{error}{waited}") from error
            time.sleep(0.05)
        except MultibinderError as error:
            raise BindRefused(str(error)) from error


def release_others(binder: str, slots: Iterable[Slot], owner: str) -> tuple[list[str], list[str]]:
    """Give back every listener of ``owner`` that is in none of ``slots``: those closed, those that others keep.

    Raises BinderUnavailable, RequestError.
    """
    wanted = {slot.key for slot in slots}
    closed: list[str] = []
    kept: list[str] = []
    with Client(binder) as client:
        surplus = []
        for listener in client.list():
            address = TcpAddress.parse(listener.address)
            keys = {str(address), f"{address} ({listener.name})", f"{address.with_port(0)} ({listener.name})"}
            if owner in listener.owners and not keys & wanted:
                surplus.append(address)
        for outcome in client.release(surplus, owner=owner):
            (kept if outcome.outcome == "kept" else closed).append(outcome.address)
    return closed, kept


@contextlib.contextmanager
def placeholders(slots: Sequence[Slot]) -> Iterator[dict[str, int]]:
    """Sockets that satisfy ``haproxy -c``, which wants each fd@N to be an open socket of the right family."""
    with contextlib.ExitStack() as stack:
        yield {slot.key: stack.enter_context(socket.socket(slot.spec.address.family)).fileno() for slot in slots}


def check_binds(binder: str, slots: Sequence[Slot], owner: str) -> None:
    """Ask whether the binder would grant ``slots``; nothing is created. Raises BinderAway, BindRefused."""
    if not slots:
        return
    try:
        with Client(binder) as client:
            client.check([slot.spec for slot in slots], owner=owner)
    except BinderUnavailable as error:
        raise BinderAway(str(error)) from error
    except MultibinderError as error:
        raise BindRefused(str(error)) from error


def close(fds: Iterable[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def _place(fd: int) -> int:
    """The same socket, inheritable, with a number that leaves HAProxy's master room for its own."""
    if fd not in _MASTERS_OWN:
        return fd
    placed = fcntl.fcntl(fd, fcntl.F_DUPFD, _MASTERS_OWN.stop)
    os.close(fd)
    return placed


def _is_listener(fd: int, address: TcpAddress) -> bool:
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return False
    try:
        host, port = sock.getsockname()[:2]
        bound = TcpAddress.of(host, port)
        return address.matches(bound) and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except (OSError, ValueError, TypeError):
        return False
    finally:
        sock.detach()
