"""The descriptors that HAProxy will inherit: those at hand, those asked of the binder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from multibinder import (
    BinderUnavailable,
    Client,
    MultibinderError,
    TcpAddress,
)
from multibinder_haproxy.config.jinja import Slot
from multibinder_haproxy.errors import BinderAway, BindRefused

#: A descriptor must be below HAProxy's maxsock, which follows maxconn: so the first ones stay as low as they came.
#: But HAProxy's master counts with a maxconn of 100 for itself, and exits when its own descriptors pass 214 (measured
#: on 2.6.12; 235 on 3.2): so the numbers from here to there are left to it.
_MASTERS_OWN = range(100, 200)
#: A binder that crashed is being started again, by systemd or its guard: until then it does not count as away.
RESTART_S = 2.0
_TRY_AGAIN_S = 0.05

T = TypeVar("T")


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
    specs = [slot.spec for slot in slots]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            sockets = _ask(binder, lambda it: it.bind(specs, owner=owner, inheritable=True), wait_s, timeout_s)
        except BinderUnavailable as error:
            waited = f" (waited {wait_s:g} s)" if wait_s else ""
            raise BinderAway(f"{error}{waited}") from error
        except MultibinderError as error:
            raise BindRefused(str(error)) from error
    fds = {slot.key: _place(sock.detach()) for slot, sock in zip(slots, sockets, strict=True)}
    return fds, [str(warning.message) for warning in caught]


def release_others(binder: str, slots: Iterable[Slot], owner: str) -> tuple[list[str], list[str]]:
    """Give back every listener of ``owner`` that is in none of ``slots``: those closed, those that others keep.

    Waits a moment for a binder that is being started again. Raises BinderUnavailable, RequestError.
    """
    wanted = {slot.key for slot in slots}
    surplus: list[TcpAddress] = []
    for listener in _ask(binder, Client.list, RESTART_S):
        address = TcpAddress.parse(listener.address)
        keys = {str(address), f"{address} ({listener.name})", f"{address.with_port(0)} ({listener.name})"}
        if owner in listener.owners and not keys & wanted:
            surplus.append(address)
    outcomes = _ask(binder, lambda it: it.release(surplus, owner=owner), RESTART_S) if surplus else []
    closed = [outcome.address for outcome in outcomes if outcome.outcome != "kept"]
    return closed, [outcome.address for outcome in outcomes if outcome.outcome == "kept"]


@contextlib.contextmanager
def placeholders(slots: Sequence[Slot]) -> Iterator[dict[str, int]]:
    """Sockets that satisfy ``haproxy -c``, which wants each fd@N to be an open socket of the right family."""
    with contextlib.ExitStack() as stack:
        yield {slot.key: stack.enter_context(socket.socket(slot.spec.address.family)).fileno() for slot in slots}


def check_binds(binder: str, slots: Sequence[Slot], owner: str) -> None:
    """Ask whether the binder would grant ``slots``; nothing is created. Waits a moment for a binder that is being
    started again. Raises BinderAway, BindRefused."""
    if not slots:
        return
    specs = [slot.spec for slot in slots]
    try:
        _ask(binder, lambda it: it.check(specs, owner=owner), RESTART_S)
    except BinderUnavailable as error:
        raise BinderAway(str(error)) from error
    except MultibinderError as error:
        raise BindRefused(str(error)) from error


def _ask(binder: str, question: Callable[[Client], T], wait_s: float, timeout_s: float = 10.0) -> T:
    """Each question may be asked twice: a binder that died before it answered may have done what it was told."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with Client(binder, timeout=timeout_s) as client:
                return question(client)
        except BinderUnavailable:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_TRY_AGAIN_S)


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
