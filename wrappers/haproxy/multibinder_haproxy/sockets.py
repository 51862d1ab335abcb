"""The descriptors that HAProxy inherits: those that its master holds, and those that the binder hands over."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from multibinder import BinderUnavailable, Client, ListenerStatus, MultibinderError, TcpAddress
from multibinder.wire.status import OwnerStatus
from multibinder_haproxy.config.model import Slot
from multibinder_haproxy.errors import BinderAway, BindRefused

#: A descriptor must be below HAProxy's maxsock, which follows maxconn, so the lowest ones keep their numbers. HAProxy's
#: master assumes a maxconn of 100 for itself, and exits if a descriptor that it opens is above 214 (measured on 2.6.12;
#: 235 on 3.2), so these numbers are left to it.
_MASTERS_OWN = range(100, 200)
#: systemd or the guard starts a crashed binder again within this time; until then it does not count as away.
RESTART_S = 2.0
_TRY_AGAIN_S = 0.05

T = TypeVar("T")


def still_listening(fds: Mapping[str, int]) -> dict[str, int]:
    """Return those of ``fds`` whose socket is the listener of their key. The others may be other files by now."""
    return {key: fd for key, fd in fds.items() if _is_listener(fd, address_of_key(key))}


def address_of_key(key: str) -> TcpAddress:
    """Return the requested address of a slot key: 127.0.0.1:0 of ``127.0.0.1:0 (stats)``."""
    return TcpAddress.parse(key.partition(" ")[0])


def obtain(
    binder: str, slots: Sequence[Slot], owner: str, wait_s: float, timeout_s: float = 10.0
) -> tuple[dict[str, int], list[str]]:
    """Ask the binder for all ``slots`` or none; return descriptors by slot key, and the binder's warnings.

    The descriptors are inheritable, and the caller owns them. Waits up to ``wait_s`` for a binder that does not run
    yet, and ``timeout_s`` for an answer. Raises BinderAway, BindRefused.
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
    """Release every listener of ``owner`` that is in none of ``slots``.

    Returns the addresses that were closed, and those that stay open because another owner keeps them. Waits a moment
    for a binder that is being started again. Raises BinderUnavailable, RequestError.
    """
    wanted = {slot.key for slot in slots}
    surplus: list[TcpAddress] = []
    for listener in _owned_by(binder, owner):
        address = TcpAddress.parse(listener.address)
        keys = {str(address), f"{address} ({listener.name})", f"{address.with_port(0)} ({listener.name})"}
        if not keys & wanted:
            surplus.append(address)
    outcomes = _ask(binder, lambda it: it.release(surplus, owner=owner), RESTART_S) if surplus else []
    closed = [outcome.address for outcome in outcomes if outcome.outcome != "kept"]
    return closed, [outcome.address for outcome in outcomes if outcome.outcome == "kept"]


def _owned_by(binder: str, label: str) -> list[ListenerStatus]:
    """Return the listeners to which this user has a claim with that label. Other users have labels of their own."""

    def owned(client: Client) -> list[ListenerStatus]:
        # The binder says who we are: in a user namespace, our uid is another one there.
        uid = client.hello().uid
        if uid is None:  # a binder of 0.1: a label belongs to one uid
            return [listener for listener in client.list() if label in listener.owners]
        return [listener for listener in client.list() if OwnerStatus(label, uid) in listener.claims]

    return _ask(binder, owned, RESTART_S)


@contextlib.contextmanager
def placeholders(slots: Sequence[Slot]) -> Iterator[dict[str, int]]:
    """Open a socket for each slot: ``haproxy -c`` wants each fd@N to be an open socket of the right family."""
    with contextlib.ExitStack() as stack:
        yield {slot.key: stack.enter_context(socket.socket(slot.spec.address.family)).fileno() for slot in slots}


def check_binds(binder: str, slots: Sequence[Slot], owner: str) -> None:
    """Ask whether the binder would grant ``slots``; nothing is created. Raises BinderAway, BindRefused.

    Waits a moment for a binder that is being started again.
    """
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
    """Ask the binder, and ask again until ``wait_s`` is over if it does not answer.

    A binder that died before it answered may have carried out the request, so each ``question`` must be idempotent.
    """
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
    """Return the same socket with a number that leaves HAProxy's master room for its own descriptors."""
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
