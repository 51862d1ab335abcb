"""Describe the metrics of the binder and its listeners, and fill them from its ``status``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import Metric
from prometheus_client.utils import floatToGoString

from multibinder.observe.metrics.family import Counter, Described, Gauge, Histogram, Info
from multibinder.wire.status import REQUEST_BOUNDS_S, BinderStatus, Counters, ListenerHealth

#: The labels that are exposed from the start with value 0, because rate() does not count the first sample of a series.
METHODS = ("hello", "bind", "check", "list", "release", "status", "upgrade", "move", "adopt", "other")
REASONS = ("policy", "owner", "bind", "invalid", "internal", "timeout")
STATES = ("serving", "orphan", "stalled", "repaired", "draining")
ROLES = ("accepting", "draining", "holding")

_LABELS = ("address", "name")

UP = Gauge("multibinder_up", "Whether the binder answered this scrape.")
BUILD = Info("multibinder_build_info", "The version of the binder that runs.", ("version",))
START_TIME = Gauge("multibinder_start_time_seconds", "When this binder began to serve, or was last upgraded.")
STARTS = Counter("multibinder_starts_total", "Starts of this binder since boot.")
UPGRADES = Counter("multibinder_upgrades_total", "Upgrades in place of this binder since boot.")
POLICY = Gauge("multibinder_policy_active", "Whether a policy file decides which client may ask for what.")
CLIENTS = Gauge("multibinder_clients", "Clients connected to the control socket, this scrape's own among them.")
DESCRIPTORS = Gauge("multibinder_descriptors", "Descriptors that the binder has open.")
DESCRIPTORS_LIMIT = Gauge("multibinder_descriptors_limit", "Descriptors that the binder may have open.")
IN_FLIGHT = Gauge(
    "multibinder_descriptors_in_flight", "Descriptors sent to clients and not yet read by them, as far as is known."
)
LISTENERS = Gauge("multibinder_listeners", "Listeners that the binder reports to the exporter.")
LISTENERS_LIMIT = Gauge("multibinder_listeners_limit", "Listeners that the binder may hold.")
KEEPER = Info("multibinder_keeper_info", "What keeps the sockets through a crash of the binder.", ("keeper",))
KEPT = Gauge("multibinder_keeper_sockets", "Sockets that the keeper has.")
KEPT_LIMIT = Gauge("multibinder_keeper_sockets_limit", "Sockets that the keeper takes.")
LOOKED_AT = Gauge("multibinder_last_look_timestamp_seconds", "When the binder last searched for holders.")
REQUESTS = Counter("multibinder_requests_total", "Requests, by method.", ("method",))
REFUSALS = Counter("multibinder_refusals_total", "Requests and clients refused, by reason.", ("reason",))
DURATION = Histogram("multibinder_request_duration_seconds", "Time that the binder spent on a request.")
HANDOFFS = Counter("multibinder_handoffs_total", "Descriptors given to clients.")
CONNECTIONS = Counter("multibinder_connections_total", "Connections accepted on the control socket.")
EVICTIONS = Counter("multibinder_evictions_total", "Idle connections closed to make room for others.")

QUEUE = Gauge("multibinder_listener_queue_length", "Connections in the accept queue.", _LABELS)
QUEUE_LIMIT = Gauge("multibinder_listener_queue_limit", "The most connections that fit in the accept queue.", _LABELS)
MEMORY = Gauge("multibinder_listener_queue_bytes", "Memory of the datagrams that wait to be received.", _LABELS)
MEMORY_LIMIT = Gauge(
    "multibinder_listener_queue_limit_bytes", "The most memory that datagrams that wait may take.", _LABELS
)
BACKLOG = Gauge("multibinder_listener_backlog_requested", "The backlog that was asked for.", _LABELS)
DROPS = Counter(
    "multibinder_listener_drops_total", "Packets dropped by this socket; their clients must retry.", _LABELS
)
LISTENER_HANDOFFS = Counter(
    "multibinder_listener_handoffs_total", "Descriptors of this listener given to clients.", _LABELS
)
HOLDERS = Gauge("multibinder_listener_holders", "Processes that have the listener open, by role.", (*_LABELS, "role"))
HIDDEN = Gauge("multibinder_listener_holders_hidden", "Whether holders may be hidden from the binder.", _LABELS)
STATE = Gauge("multibinder_listener_state", "1 for the state of the listener, 0 for the others.", (*_LABELS, "state"))
ORPHAN = Gauge("multibinder_listener_orphan_seconds", "The time since a process last had the listener open.", _LABELS)
ORPHAN_TTL = Gauge(
    "multibinder_listener_orphan_ttl_seconds", "The time after which the listener is closed as an orphan.", _LABELS
)
STALLED = Gauge(
    "multibinder_listener_stalled_seconds", "The time for which clients have waited without an accept.", _LABELS
)
REPAIRS = Counter(
    "multibinder_listener_repairs_total", "Repairs by the binder after a holder's shutdown() or listen().", _LABELS
)
IS_KEPT = Gauge("multibinder_listener_kept", "Whether the listener would survive a crash of the binder.", _LABELS)
CREATED = Gauge("multibinder_listener_created_timestamp_seconds", "When the listener was created.", _LABELS)
OWNER = Info(
    "multibinder_listener_owner_info", "The owners that have a claim to the listener.", ("owner", "uid"), _LABELS
)

FAMILIES: Sequence[Described] = (
    UP, BUILD, START_TIME, STARTS, UPGRADES, POLICY, CLIENTS, DESCRIPTORS, DESCRIPTORS_LIMIT, IN_FLIGHT, LISTENERS,
    LISTENERS_LIMIT, KEEPER, KEPT, KEPT_LIMIT, LOOKED_AT, REQUESTS, REFUSALS, DURATION, HANDOFFS, CONNECTIONS,
    EVICTIONS, QUEUE, QUEUE_LIMIT, MEMORY, MEMORY_LIMIT, BACKLOG, DROPS, LISTENER_HANDOFFS, HOLDERS, HIDDEN, STATE,
    ORPHAN, ORPHAN_TTL, STALLED, REPAIRS, IS_KEPT, CREATED, OWNER,
)  # fmt: skip


def of_the_binder(status: BinderStatus | None, now: float) -> Iterator[Metric]:
    """Yield the metrics of a status, or of None if the binder did not answer. ``now`` is in seconds since the epoch."""
    yield UP.of(status is not None)
    if status is None:
        return
    build = BUILD.empty()
    build.add_metric((), {"version": status.version})
    keeper = KEEPER.empty()
    keeper.add_metric((), {"keeper": status.keeper or "none"})
    yield build
    yield keeper
    yield START_TIME.of(status.started)
    yield STARTS.of(status.starts)
    yield UPGRADES.of(status.upgrades)
    yield POLICY.of(status.policy is not None)
    yield CLIENTS.of(status.clients)
    yield DESCRIPTORS.of(status.descriptors)
    yield DESCRIPTORS_LIMIT.of(status.descriptors_limit)
    yield IN_FLIGHT.of(status.descriptors_in_flight)
    yield LISTENERS.of(len(status.listeners))
    yield LISTENERS_LIMIT.of(status.listeners_limit)
    yield KEPT.of(status.kept)
    yield KEPT_LIMIT.of(status.kept_limit)
    if status.looked_at is not None:
        yield LOOKED_AT.of(status.looked_at)
    yield from _of_the_requests(status.counters)
    yield from _of_the_listeners(status.listeners, now)


def _of_the_requests(counters: Counters) -> Iterator[Metric]:
    yield _by_label(REQUESTS, METHODS, counters.requests)
    yield _by_label(REFUSALS, REASONS, counters.refusals)
    if len(counters.request_buckets) == len(REQUEST_BOUNDS_S) + 1:
        duration = DURATION.empty()
        bounds = [*map(floatToGoString, REQUEST_BOUNDS_S), "+Inf"]
        up_to = accumulate(counters.request_buckets)
        duration.add_metric((), list(zip(bounds, map(float, up_to), strict=True)), counters.request_seconds)
        yield duration
    yield HANDOFFS.of(counters.handoffs)
    yield CONNECTIONS.of(counters.connections)
    yield EVICTIONS.of(counters.evictions)


def _by_label(family: Counter, always: Sequence[str], counted: Mapping[str, int]) -> Metric:
    metric = family.empty()
    for label, count in {**dict.fromkeys(always, 0), **counted}.items():
        metric.add_metric((label,), count)
    return metric


def _of_the_listeners(listeners: Sequence[ListenerHealth], now: float) -> Iterator[Metric]:
    """Yield each family with the samples of all listeners. The exposition formats forbid a family in two parts."""
    queue, limit, backlog, drops = QUEUE.empty(), QUEUE_LIMIT.empty(), BACKLOG.empty(), DROPS.empty()
    memory, memory_limit = MEMORY.empty(), MEMORY_LIMIT.empty()
    handoffs, holders, hidden, state = LISTENER_HANDOFFS.empty(), HOLDERS.empty(), HIDDEN.empty(), STATE.empty()
    orphan, ttl, stalled, repairs = ORPHAN.empty(), ORPHAN_TTL.empty(), STALLED.empty(), REPAIRS.empty()
    kept, created, owner = IS_KEPT.empty(), CREATED.empty(), OWNER.empty()
    for listener in listeners:
        # Shards have the same address, and each needs a series of its own.
        labels = (listener.key, listener.name or "")
        if listener.queue is not None:
            (queue if listener.accepts else memory).add_metric(labels, listener.queue)
        if listener.limit is not None:
            (limit if listener.accepts else memory_limit).add_metric(labels, listener.limit)
        if listener.backlog_requested is not None:
            backlog.add_metric(labels, listener.backlog_requested)
        if listener.drops is not None:
            drops.add_metric(labels, listener.drops)
        handoffs.add_metric(labels, listener.handoffs)
        hidden.add_metric(labels, listener.holders is None)
        if listener.holders is not None:
            roles = [holder.role for holder in listener.holders]
            for role in ROLES:
                holders.add_metric((*labels, role), roles.count(role))
        for each in STATES:
            state.add_metric((*labels, each), listener.state == each)
        orphan.add_metric(labels, _seconds(listener.orphan_since, now))
        if listener.orphan_ttl_s is not None:
            ttl.add_metric(labels, listener.orphan_ttl_s)
        stalled.add_metric(labels, _seconds(listener.stalled_since, now))
        repairs.add_metric(labels, listener.repairs)
        kept.add_metric(labels, listener.kept)
        created.add_metric(labels, listener.created)
        for claim in {(each.label, each.uid) for each in listener.owners}:
            owner.add_metric(labels, {"owner": claim[0], "uid": str(claim[1])})
    yield from (queue, limit, memory, memory_limit, backlog, drops, handoffs, holders, hidden, state, orphan, ttl)
    yield from (stalled, repairs, kept, created, owner)


def _seconds(since: float | None, now: float) -> float:
    return 0.0 if since is None else max(0.0, now - since)
