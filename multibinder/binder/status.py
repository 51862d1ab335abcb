"""The status of the binder, which ``multibinder status`` shows."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable

import msgspec

from multibinder.binder.answer import Pieces
from multibinder.binder.caller import Caller
from multibinder.binder.counters import RequestCounters
from multibinder.binder.durable_state import DurableState
from multibinder.binder.failures import callback_failed
from multibinder.binder.health_monitor import HealthMonitor
from multibinder.binder.keeper import Keeper
from multibinder.binder.listings import Listings
from multibinder.binder.policy_in_force import PolicyInForce
from multibinder.binder.quotas import Quotas
from multibinder.kernel.descriptors import count_own
from multibinder.wire.status import BinderStatus

#: Holders that were searched for longer ago are searched for again, in the background, when they are asked for.
_OLDEST_S = 300.0
#: An empty field, in whose place the listeners are put. In a JSON string the quotes would be escaped.
_NO_LISTENERS = b'"listeners":[]'


class BinderStatusSource:
    """Looks at the listeners when a client asks, and builds the status from the result."""

    def __init__(
        self,
        version: str,
        monitor: HealthMonitor,
        listings: Listings,
        durable: DurableState,
        keeper: Keeper | None,
        quotas: Quotas,
        policy: PolicyInForce,
        counters: RequestCounters,
    ) -> None:
        self._version = version
        self._monitor = monitor
        self._listings = listings
        self._durable = durable
        self._keeper = keeper
        self._quotas = quotas
        self._policy = policy
        self._counters = counters
        self._started = time.time()

    def status(self, caller: Caller, tell: Callable[[Pieces | None], None], *, fresh: bool) -> None:
        """Look, and then ``tell`` a status of the binder and of the listeners that ``caller`` may see by then.

        It is None if the status could not be made. Without ``fresh`` the holders are those of the last look, if there
        was one.
        """

        def finish(listeners: bytes | None) -> None:
            pieces = None
            try:
                pieces = self._with_binder(listeners)
            except Exception as error:  # the client must not wait for ever
                callback_failed(self._with_binder, error)
            tell(pieces)

        def make() -> None:
            self._listings.ask("status", caller, self._monitor.health_of, finish)

        looked_at = self._monitor.looked_at
        if fresh or looked_at is None:
            self._monitor.look(make)
            return
        # Where an exporter alone asks, roles and holders would be those of the binder's start for ever.
        if time.time() - looked_at > _OLDEST_S:
            self._monitor.look()
        make()

    def _with_binder(self, listeners: bytes | None) -> Pieces | None:
        if listeners is None:
            return None
        before, after = msgspec.json.encode(self._status()).split(_NO_LISTENERS)
        return before + b'"listeners":', listeners, after

    def _status(self) -> BinderStatus:
        keeper, policy = self._keeper, self._policy.current
        return BinderStatus(
            format=1,
            version=self._version,
            pid=os.getpid(),
            started=self._started,
            starts=self._durable.starts,
            upgrades=self._durable.upgrades,
            policy=policy.path if policy else None,
            clients=self._quotas.clients,
            descriptors=count_own(),
            descriptors_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            descriptors_in_flight=self._quotas.in_flight,
            listeners_limit=self._quotas.limits.listeners,
            keeper=None if keeper is None else keeper.who,
            kept=0 if keeper is None else keeper.kept,
            kept_limit=0 if keeper is None else keeper.limit,
            looked_at=self._monitor.looked_at,
            counters=self._counters.totals,
            listeners=[],
        )
