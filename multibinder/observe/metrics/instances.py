"""Describe the metrics of the HAProxy instances of this host, and fill them from their summaries.

The label is ``name``: Prometheus itself sets ``instance`` to the target that it scraped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import Metric

from multibinder.observe.instances import Instance
from multibinder.observe.metrics.family import Counter, Described, Gauge

STATES = ("running", "reloading", "stopping", "stopped")

_OF = ("name",)

READABLE = Gauge("multibinder_instance_readable", "Whether its summary can be read; if not, no other metric is.", _OF)
UP = Gauge("multibinder_instance_up", "Whether HAProxy's master lives.", _OF)
STATE = Gauge("multibinder_instance_state", "1 for the state that it is in, 0 for the others.", (*_OF, "state"))
STARTS = Counter("multibinder_instance_starts_total", "Starts of HAProxy, failed ones too.", _OF)
RELOADS = Counter("multibinder_instance_reloads_total", "Reloads, failed and refused ones too.", _OF)
FAILURES = Counter("multibinder_instance_failures_total", "Starts and reloads that failed or were refused.", _OF)
GENERATION = Gauge("multibinder_instance_generation", "Which configuration it has: counts what HAProxy was given.", _OF)
FALLBACK = Gauge("multibinder_instance_fallback", "Whether what runs is not what the templates said.", _OF)
START_TIME = Gauge("multibinder_instance_start_time_seconds", "When HAProxy's master began.", _OF)
LAST_LOAD = Gauge("multibinder_instance_last_load_timestamp_seconds", "When HAProxy was last given one.", _OF)
LAST_SUCCESS = Gauge("multibinder_instance_last_success_timestamp_seconds", "When a load last succeeded.", _OF)
LAST_FAILURE = Gauge("multibinder_instance_last_failure_timestamp_seconds", "When a load last failed.", _OF)
WORKERS = Gauge("multibinder_instance_workers", "Workers that serve.", _OF)
OLD_WORKERS = Gauge("multibinder_instance_old_workers", "Old workers that still finish their connections.", _OF)
BINDS = Gauge("multibinder_instance_binds", "Addresses that the binder holds for it.", _OF)
CHANGED = Gauge("multibinder_instance_config_changed", "Whether its files on disk are not those it loaded.", _OF)
UNKNOWN = Gauge("multibinder_instance_config_unknown", "Whether it cannot be told if its files have changed.", _OF)
WRITTEN = Gauge("multibinder_instance_summary_timestamp_seconds", "When what all this comes from was written.", _OF)

FAMILIES: Sequence[Described] = (
    READABLE, UP, STATE, STARTS, RELOADS, FAILURES, GENERATION, FALLBACK, START_TIME, LAST_LOAD, LAST_SUCCESS,
    LAST_FAILURE, WORKERS, OLD_WORKERS, BINDS, CHANGED, UNKNOWN, WRITTEN,
)  # fmt: skip


def of_the_instances(instances: Sequence[Instance]) -> Iterator[Metric]:
    """Yield the metrics of these instances."""
    readable = READABLE.empty()
    for instance in instances:
        readable.add_metric((instance.name,), instance.summary is not None)
    yield readable
    read = [(instance, instance.summary) for instance in instances if instance.summary is not None]
    state = STATE.empty()
    for instance, summary in read:
        for each in STATES:
            state.add_metric((instance.name, each), summary.state == each)
    yield state
    values: dict[Gauge | Counter, Sequence[float | None]] = {
        UP: [instance.up for instance, _ in read],
        STARTS: [summary.starts_total for _, summary in read],
        RELOADS: [summary.reloads_total for _, summary in read],
        FAILURES: [summary.failures_total for _, summary in read],
        GENERATION: [summary.generation for _, summary in read],
        FALLBACK: [summary.fallback for _, summary in read],
        START_TIME: [summary.started for _, summary in read],
        LAST_LOAD: [summary.last_load for _, summary in read],
        LAST_SUCCESS: [summary.last_success for _, summary in read],
        LAST_FAILURE: [summary.last_failure for _, summary in read],
        WORKERS: [instance.workers for instance, _ in read],
        OLD_WORKERS: [instance.old_workers for instance, _ in read],
        BINDS: [len(summary.binds) for _, summary in read],
        CHANGED: [instance.changed for instance, _ in read],
        UNKNOWN: [instance.changed is None for instance, _ in read],
        WRITTEN: [summary.written for _, summary in read],
    }
    for family, of_each in values.items():
        metric = family.empty()
        for (instance, _), value in zip(read, of_each, strict=True):
            if value is not None:
                metric.add_metric((instance.name,), value)
        yield metric
