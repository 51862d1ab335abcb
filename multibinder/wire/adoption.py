"""Ask the binder to adopt sockets, and send them when it has allowed that."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from multibinder.wire.adopt_params import ADOPT, Adopted, AdoptParams, AdoptResult
from multibinder.wire.connection import Connection
from multibinder.wire.errors import BinderUnavailable
from multibinder.wire.listener_params import ListenerParams
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.reception import decode_result
from multibinder.wire.session import Session
from multibinder.wire.transport import MAX_DESCRIPTORS


class Offer(NamedTuple):
    """A listener for the binder, and what the client knows of it; see ``AdoptParams``. The socket stays its owner's."""

    spec: ListenerSpec
    socket: socket.socket
    holders: Sequence[int] = ()
    moves_clients: bool = False

    def params(self, owner: str) -> AdoptParams:
        params = msgspec.structs.asdict(ListenerParams.of(self.spec, owner))
        return AdoptParams(**params, holders=tuple(self.holders), moves_clients=self.moves_clients)


#: An upgrade of the binder between the two requests takes the permission back.
_TRIES = 3


def adopt_all(
    session: Session,
    offers: Sequence[Offer],
    owner: str,
    before_sending: Callable[[int], object] | None,
    timeout_s: float,
) -> list[Adopted]:
    """Do what ``Client.adopt`` does. More than MAX_DESCRIPTORS sockets are adopted in several requests."""
    adopted: list[Adopted] = []
    for first in range(0, len(offers), MAX_DESCRIPTORS):
        some = offers[first : first + MAX_DESCRIPTORS]

        def exchange(connection: Connection, deadline: float) -> Sequence[Adopted]:
            return _adopt(connection, some, owner, before_sending, timeout_s, deadline)  # noqa: B023 (called at once)

        adopted += session.call(exchange, timeout_s, can_repeat=True)
    return adopted


def _adopt(
    connection: Connection,
    offers: Sequence[Offer],
    owner: str,
    before_sending: Callable[[int], object] | None,
    timeout_s: float,
    deadline: float,
) -> Sequence[Adopted]:
    params = [each.params(owner) for each in offers]
    descriptors = [each.socket.fileno() for each in offers]
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
