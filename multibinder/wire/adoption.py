"""Ask the binder to adopt sockets, and send them when it has allowed that."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from multibinder.wire.adopt_params import ADOPT, Adopted, AdoptResult
from multibinder.wire.connection import Connection
from multibinder.wire.errors import BinderUnavailable
from multibinder.wire.listener_params import ListenerParams
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.reception import decode_result
from multibinder.wire.session import Session
from multibinder.wire.transport import MAX_DESCRIPTORS

#: An upgrade of the binder between the two requests takes the permission back.
_TRIES = 3


def adopt_all(
    session: Session,
    sockets: Sequence[tuple[ListenerSpec, socket.socket]],
    owner: str,
    before_sending: Callable[[int], object] | None,
    timeout_s: float,
) -> list[Adopted]:
    """Do what ``Client.adopt`` does. More than MAX_DESCRIPTORS sockets are adopted in several requests."""
    adopted: list[Adopted] = []
    for first in range(0, len(sockets), MAX_DESCRIPTORS):
        some = sockets[first : first + MAX_DESCRIPTORS]

        def exchange(connection: Connection, deadline: float) -> Sequence[Adopted]:
            return _adopt(connection, some, owner, before_sending, timeout_s, deadline)  # noqa: B023 (called at once)

        adopted += session.call(exchange, timeout_s, can_repeat=True)
    return adopted


def _adopt(
    connection: Connection,
    sockets: Sequence[tuple[ListenerSpec, socket.socket]],
    owner: str,
    before_sending: Callable[[int], object] | None,
    timeout_s: float,
    deadline: float,
) -> Sequence[Adopted]:
    params = [ListenerParams.of(spec, owner) for spec, _ in sockets]
    descriptors = [sock.fileno() for _, sock in sockets]
    permission = decode_result(connection.ask(ADOPT, params, timeout_s, deadline), AdoptResult)
    for _ in range(_TRIES):
        if before_sending is not None:
            before_sending(permission.uid)
        try:
            reply = connection.ask(ADOPT, params, timeout_s, deadline, descriptors=descriptors)
        except PermissionError:
            reply = connection.ask(ADOPT, params, timeout_s, deadline)
        answer = decode_result(reply, AdoptResult)
        if not answer.send:
            return answer.listeners
        permission = answer
    raise BinderUnavailable(f"the binder at {connection.path} was upgraded again and again; ask again later")
