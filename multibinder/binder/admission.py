"""Admission control: admit a new client, evict a connected one to make room for it, or turn it away."""

from __future__ import annotations

from typing import NamedTuple

from multibinder.binder.answer import Answer, refuse
from multibinder.binder.clients import Clients
from multibinder.binder.peer import Peer
from multibinder.binder.quotas import Quotas, Refusal, User
from multibinder.wire import messages


class Verdict(NamedTuple):
    """The decision about one new client.

    With a ``refusal``, it is turned away. Otherwise it is admitted; a peer in ``evict`` is evicted first.
    """

    evict: Peer | None = None
    refusal: Refusal | None = None


class Admission:
    """Decide whether a new client is admitted. Nothing is changed here: the server carries out the verdict."""

    def __init__(self, clients: Clients, quotas: Quotas) -> None:
        self._clients = clients
        self._quotas = quotas

    def decide(self, newcomer: User) -> Verdict:
        """Decide about one more client of this user."""
        limits = self._quotas.limits
        if not newcomer.privileged and newcomer.clients >= limits.clients_per_uid:
            text = f"uid {newcomer.uid} has {limits.clients_per_uid} clients, its limit (--max-clients-per-uid)"
            return self._replace_client_of(newcomer, newcomer, Refusal("clients_per_uid", text))
        if len(self._clients) >= limits.clients:
            text = f"this binder serves {limits.clients} at once (--max-clients)"
            most_clients = self._quotas.most_clients(privileged=newcomer.privileged)
            return self._replace_client_of(most_clients, newcomer, Refusal("clients", text))
        return Verdict()

    def _replace_client_of(self, user: User | None, newcomer: User, refusal: Refusal) -> Verdict:
        victim = None if user is None else self._victim_of(user, newcomer)
        return Verdict(refusal=refusal) if victim is None else Verdict(evict=victim)

    def _victim_of(self, user: User, newcomer: User) -> Peer | None:
        """Choose the longest-idle client of ``user``, or None.

        If the newcomer has less than half as many clients as a user without privileges, one with a request in progress
        may be chosen as well. For root and the binder's own user, any client without privileges may be chosen, even one
        to which descriptors are in flight: these no longer count against its user's quota.
        """
        for peer in self._clients.idle:
            if peer.user is user and not (
                peer.owes_acknowledgement or peer.has_unread_input() or peer.must_stay_open()
            ):
                return peer
        if 2 * newcomer.clients < user.clients and not user.privileged:
            for peer in self._clients.of(user):
                if not (peer.awaits_answer or peer.owes_acknowledgement or peer.must_stay_open()):
                    return peer
        return next(iter(self._clients.of(user))) if newcomer.privileged and not user.privileged else None


def answer_to_evicted() -> Answer:
    """Return the last answer to a client that is evicted in the middle of a request."""
    text = "too many clients: this one was evicted to admit one of another user; try again"
    return refuse(None, messages.LIMIT_REACHED, text, {"limit": "clients"})


def answer_to_turned_away(refusal: Refusal) -> Answer:
    """Return the answer to a client that is not admitted."""
    text = f"too many clients: {refusal.sentence}; try again"
    return refuse(None, messages.LIMIT_REACHED, text, {"limit": refusal.limit})
