"""Describe the metrics of the instances of this host, and fill them from their summaries.

The ``driver`` is ``haproxy`` or ``run``, because instances of both may have one name. The other label is ``name``:
Prometheus itself sets ``instance`` to the target that it scraped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import Metric

from multibinder.observe.instances import Instance
from multibinder.observe.metrics.family import Counter, Described, Gauge

STATES = ("running", "reloading", "stopping", "stopped")

_LABELS = ("name", "driver")

READABLE = Gauge(
    "multibinder_instance_readable", "Whether the summary can be read. Without it, there is no other metric.", _LABELS
)
UP = Gauge("multibinder_instance_up", "Whether HAProxy's master, or 'multibinder run', lives.", _LABELS)
STATE = Gauge("multibinder_instance_state", "1 for the state of the instance, 0 for the others.", (*_LABELS, "state"))
STARTS = Counter(
    "multibinder_instance_starts_total", "Starts of HAProxy or of 'multibinder run', failed ones too.", _LABELS
)
RELOADS = Counter("multibinder_instance_reloads_total", "Reloads, failed and refused ones too.", _LABELS)
FAILURES = Counter("multibinder_instance_failures_total", "Starts and reloads that failed or were refused.", _LABELS)
GENERATION = Gauge(
    "multibinder_instance_generation", "The number of the configuration that it was last given.", _LABELS
)
FALLBACK = Gauge(
    "multibinder_instance_fallback", "Whether the last good configuration runs instead of a new one.", _LABELS
)
START_TIME = Gauge(
    "multibinder_instance_start_time_seconds", "When HAProxy's master, or 'multibinder run', started.", _LABELS
)
LAST_LOAD = Gauge(
    "multibinder_instance_last_load_timestamp_seconds", "When it was last given a configuration.", _LABELS
)
LAST_SUCCESS = Gauge(
    "multibinder_instance_last_success_timestamp_seconds", "When a start or reload last succeeded.", _LABELS
)
LAST_FAILURE = Gauge(
    "multibinder_instance_last_failure_timestamp_seconds", "When a start or reload last failed.", _LABELS
)
WORKERS = Gauge("multibinder_instance_workers", "Workers or copies that serve.", _LABELS)
OLD_WORKERS = Gauge("multibinder_instance_old_workers", "Old workers or copies that finish their connections.", _LABELS)
BINDS = Gauge("multibinder_instance_binds", "Addresses that the binder holds for the instance.", _LABELS)
CHANGED = Gauge(
    "multibinder_instance_config_changed", "Whether the files on disk differ from those that were loaded.", _LABELS
)
UNKNOWN = Gauge(
    "multibinder_instance_config_unknown", "Whether a change of the files on disk cannot be detected.", _LABELS
)
WRITTEN = Gauge("multibinder_instance_summary_timestamp_seconds", "When the summary was written.", _LABELS)

# Of 'multibinder run' alone.
WANTED = Gauge("multibinder_instance_copies_wanted", "Copies that should serve.", _LABELS)
RESTARTS = Counter("multibinder_instance_restarts_total", "Copies started again after they ended unasked.", _LABELS)
GAVE_UP = Gauge(
    "multibinder_instance_gave_up", "Whether the ports are closed because no copy could be started.", _LABELS
)
CANARY = Gauge("multibinder_instance_canary", "Whether a reload waits with canaries for an operator.", _LABELS)

FAMILIES: Sequence[Described] = (
    READABLE, UP, STATE, STARTS, RELOADS, FAILURES, GENERATION, FALLBACK, START_TIME, LAST_LOAD, LAST_SUCCESS,
    LAST_FAILURE, WORKERS, OLD_WORKERS, BINDS, CHANGED, UNKNOWN, WRITTEN,
    WANTED, RESTARTS, GAVE_UP, CANARY,
)  # fmt: skip


def of_the_instances(instances: Sequence[Instance]) -> Iterator[Metric]:
    """Yield the metrics of these instances."""
    readable = READABLE.empty()
    for instance in instances:
        readable.add_metric(_labels(instance), instance.summary is not None)
    yield readable
    read = [(instance, instance.summary) for instance in instances if instance.summary is not None]
    state = STATE.empty()
    for instance, summary in read:
        for each in STATES:
            state.add_metric((*_labels(instance), each), summary.state == each)
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
        WANTED: [_of_run(instance, summary.wanted) for instance, summary in read],
        RESTARTS: [_of_run(instance, summary.restarts_total) for instance, summary in read],
        GAVE_UP: [_of_run(instance, summary.gave_up) for instance, summary in read],
        CANARY: [_of_run(instance, summary.activity == "canary") for instance, summary in read],
    }
    for family, of_each in values.items():
        metric = family.empty()
        for (instance, _), value in zip(read, of_each, strict=True):
            if value is not None:
                metric.add_metric(_labels(instance), value)
        yield metric


def _labels(instance: Instance) -> tuple[str, str]:
    return instance.name, instance.driver


def _of_run(instance: Instance, value: float) -> float | None:
    return value if instance.driver == "run" else None
