"""Answers about all listeners, made in slices."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Protocol

import msgspec

from multibinder.binder.answer import Pieces
from multibinder.binder.caller import Caller
from multibinder.binder.failures import callback_failed
from multibinder.binder.listener import Listener
from multibinder.binder.policy_in_force import PolicyInForce
from multibinder.binder.quotas import Quotas
from multibinder.binder.slices import Slices
from multibinder.binder.store import ListenerStore

#: Takes the JSON text of a list with one element for each listener; None if it could not be made.
TellListing = Callable[[bytes | None], None]

_encode = msgspec.json.Encoder().encode


class StatusSource(Protocol):
    """Makes the status of the binder."""

    def status(self, caller: Caller, tell: Callable[[Pieces | None], None], /, *, fresh: bool) -> None:
        """Look at the listeners, then ``tell`` the status. It shows those that ``caller`` may see after the look.

        Without ``fresh`` the last look is good enough. None means that the status could not be made.
        """


class DescribeListeners(Protocol):
    """Describes the listeners that a client may see."""

    def ask(self, method: str, caller: Caller, describe: Callable[[Listener], object], tell: TellListing, /) -> None:
        """Describe each listener for which ``caller`` may ask ``method``, then ``tell`` the JSON text of the list."""


class Listings:
    """Describe the listeners that a client may see. The work is done in slices, and charged to its user.

    One text serves all who ask for it before it is begun and see the same listeners: it is made and held once, however
    many connections ask.
    """

    def __init__(self, slices: Slices, quotas: Quotas, store: ListenerStore, policy: PolicyInForce) -> None:
        self._slices = slices
        self._quotas = quotas
        self._store = store
        self._policy = policy
        self._waiting: dict[Hashable, list[TellListing]] = {}

    def ask(self, method: str, caller: Caller, describe: Callable[[Listener], object], tell: TellListing) -> None:
        """Describe all listeners for which the caller may ask ``method``, as they are at some moment after this call.

        ``tell`` is called from the loop. ``describe`` is the same function for all calls with the same method.
        """
        key = (method, self._policy.view_of(caller))
        if key in self._waiting:
            self._waiting[key].append(tell)
            return
        self._waiting[key] = [tell]
        self._slices.run(self._make(key, method, caller, describe), self._quotas.user(caller.uid))

    def _make(
        self, key: Hashable, method: str, caller: Caller, describe: Callable[[Listener], object]
    ) -> Iterator[None]:
        waiting = self._waiting.pop(key)
        text = None
        try:
            texts = []
            for listener in self._store.listeners():
                yield
                if listener.socket.fileno() >= 0 and self._policy.allows(caller, method, listener):
                    texts.append(_encode(describe(listener)))
            text = b"[%b]" % b",".join(texts)
        finally:
            # Also after an error, which the loop logs: the clients must not wait for ever.
            for tell in waiting:
                try:
                    tell(text)
                except Exception as error:  # the others must not wait for ever either
                    callback_failed(tell, error)
                if text is not None:
                    yield
