"""Collect all metrics: ask the binder, read the summaries of the instances, and measure both."""

from __future__ import annotations

import threading
import time
from collections import Counter as Count
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from multibinder.observe.instances import Instance, instances, processes_are_visible
from multibinder.observe.metrics import binder as of_binder
from multibinder.observe.metrics import instances as of_instances
from multibinder.observe.metrics.family import Counter, Described, Gauge, Info
from multibinder.wire.client import Client
from multibinder.wire.errors import MultibinderError, NotAllowed
from multibinder.wire.status import BinderStatus

SOURCES = ("binder", "instances")

BUILD = Info("multibinder_exporter_build_info", "The version of this exporter.", ("version",))
DURATION = Gauge("multibinder_exporter_scrape_duration_seconds", "The duration of this scrape, by source.", ("source",))
ERRORS = Counter(
    "multibinder_exporter_scrape_errors_total", "Scrapes that could not read all of a source.", ("source",)
)
HIDDEN = Gauge(
    "multibinder_exporter_processes_hidden", "Whether /proc hides processes of other users from the exporter."
)

#: All metrics of the exporter.
FAMILIES: Sequence[Described] = (
    *of_binder.FAMILIES, *of_instances.FAMILIES, BUILD, DURATION, ERRORS, HIDDEN,
)  # fmt: skip

_POLICY_REMEDY = 'a policy rule with allow = ["status"] for the exporter\'s unit or uid lets it'
_SOCKET_REMEDY = "run the exporter in the control socket's group (multibinder)"


class Scrape(Collector):
    """A collector that asks each source at each scrape. A source that does not answer is a metric, not an error.

    ``complain`` is called with a source and one sentence if that source begins to fail or fails for another reason, and
    with an empty sentence when it works again.
    """

    def __init__(
        self,
        socket_path: str,
        runtime: Mapping[str, str],
        version: str,
        timeout_s: float,
        complain: Callable[[str, str], None],
    ) -> None:
        """``runtime`` has the runtime directory of each driver: of ``haproxy``, and of ``run``."""
        self._socket_path = socket_path
        self._runtime = runtime
        self._version = version
        self._timeout_s = timeout_s
        self._complain = complain
        self._complaints = dict.fromkeys(SOURCES, "")
        self._errors: Count[str] = Count()
        # Two Prometheus servers may scrape at the same time, but each source is asked once at a time.
        self._lock = threading.Lock()

    def registry(self) -> CollectorRegistry:
        """Return a registry that has this collector alone."""
        registry = CollectorRegistry()
        registry.register(self)
        return registry

    def describe(self) -> Iterator[Metric]:
        """Return no description. Without this method, registering the collector would scrape."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            began = time.perf_counter()
            status = self._ask()
            asked = time.perf_counter()
            found = self._read()
            read = time.perf_counter()
            errors = dict(self._errors)
        yield from of_binder.of_the_binder(status, time.time())
        yield from of_instances.of_the_instances(found)
        build, duration, failed = BUILD.empty(), DURATION.empty(), ERRORS.empty()
        build.add_metric((), {"version": self._version})
        for source, took_s in zip(SOURCES, (asked - began, read - asked), strict=True):
            duration.add_metric((source,), took_s)
            failed.add_metric((source,), errors.get(source, 0))
        yield from (build, duration, failed, HIDDEN.of(not processes_are_visible()))

    def _ask(self) -> BinderStatus | None:
        try:
            with Client(self._socket_path, timeout=self._timeout_s) as client:
                status = client.status(fresh=False)
        except (MultibinderError, OSError) as error:
            self._note("binder", f"the binder cannot be asked: {error}{_remedy(error)}")
            return None
        self._note("binder", "")
        return status

    def _read(self) -> list[Instance]:
        found: list[Instance] = []
        complaints = []
        for driver, directory in self._runtime.items():
            try:
                found += instances(directory, driver)
            except OSError as error:
                complaints.append(f"{directory}: cannot be listed: {(error.strerror or str(error)).lower()}")
        complaints += [instance.why for instance in found if instance.summary is None]
        self._note("instances", "; ".join(complaints))
        return found

    def _note(self, source: str, sentence: str) -> None:
        self._errors[source] += bool(sentence)
        if sentence != self._complaints[source]:
            self._complaints[source] = sentence
            self._complain(source, sentence)


def _remedy(error: Exception) -> str:
    if isinstance(error, NotAllowed):
        return f"; {_POLICY_REMEDY}"
    return f"; {_SOCKET_REMEDY}" if isinstance(error.__cause__, PermissionError) else ""
