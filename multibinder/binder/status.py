"""The status of the binder, which ``multibinder status`` shows."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Sequence

from multibinder.binder.counters import RequestCounters
from multibinder.binder.durable_state import DurableState
from multibinder.binder.health_monitor import HealthMonitor
from multibinder.binder.keeper import Keeper
from multibinder.binder.listener import Listener
from multibinder.binder.policy_in_force import PolicyInForce
from multibinder.binder.quotas import Quotas
from multibinder.kernel.descriptors import count_own
from multibinder.wire.status import BinderStatus


class BinderStatusSource:
    """Looks at the listeners when a client asks, and builds the status from the result."""

    def __init__(
        self,
        version: str,
        monitor: HealthMonitor,
        durable: DurableState,
        keeper: Keeper | None,
        quotas: Quotas,
        policy: PolicyInForce,
        counters: RequestCounters,
    ) -> None:
        self._version = version
        self._monitor = monitor
        self._durable = durable
        self._keeper = keeper
        self._quotas = quotas
        self._policy = policy
        self._counters = counters
        self._started = time.time()

    def status(self, visible: Callable[[], Sequence[Listener]], tell: Callable[[BinderStatus], None]) -> None:
        """Look, and then ``tell`` a status of the binder and of the listeners that are ``visible`` by then."""
        self._monitor.look(lambda: tell(self._status(visible())))

    def _status(self, listeners: Sequence[Listener]) -> BinderStatus:
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
            listeners=self._monitor.health(listeners),
        )
