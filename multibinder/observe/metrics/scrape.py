"""One scrape: ask the binder, read the instances' files, and say how that went."""

from __future__ import annotations

import threading
import time
from collections import Counter as Count
from collections.abc import Callable, Iterator, Sequence

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
DURATION = Gauge("multibinder_exporter_scrape_duration_seconds", "How long this scrape's questions took.", ("source",))
ERRORS = Counter("multibinder_exporter_scrape_errors_total", "Scrapes that lack something.", ("source",))
HIDDEN = Gauge("multibinder_exporter_processes_hidden", "Whether /proc hides other users' processes from it.")

#: All that is ever exposed.
FAMILIES: Sequence[Described] = (
    *of_binder.FAMILIES, *of_instances.FAMILIES, BUILD, DURATION, ERRORS, HIDDEN,
)  # fmt: skip

_POLICY_REMEDY = 'a policy rule with allow = ["status"] for the exporter\'s unit or uid lets it'
_SOCKET_REMEDY = "run the exporter in the control socket's group (multibinder)"


class Scrape(Collector):
    """Asks afresh each time that it is collected. Never raises for want of an answer: that is a metric too.

    ``complain`` is told the source and, in one sentence, what is wrong with it; or "", when nothing is any more. Once
    for each change.
    """

    def __init__(
        self, socket_path: str, runtime: str, version: str, timeout_s: float, complain: Callable[[str, str], None]
    ) -> None:
        self._socket_path = socket_path
        self._runtime = runtime
        self._version = version
        self._timeout_s = timeout_s
        self._complain = complain
        self._said = dict.fromkeys(SOURCES, "")
        self._errors: Count[str] = Count()
        # Two Prometheus servers are no reason to ask the binder two things at once.
        self._lock = threading.Lock()

    def registry(self) -> CollectorRegistry:
        """One with this and nothing else."""
        registry = CollectorRegistry()
        registry.register(self)
        return registry

    def describe(self) -> Iterator[Metric]:
        """Nothing: without it, registering would be a scrape."""
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
                status = client.status()
        except (MultibinderError, OSError) as error:
            self._note("binder", f"the binder cannot be asked: {error}{_remedy(error)}")
            return None
        self._note("binder", "")
        return status

    def _read(self) -> list[Instance]:
        try:
            found = instances(self._runtime)
        except OSError as error:
            self._note("instances", f"{self._runtime}: cannot be listed: {(error.strerror or str(error)).lower()}")
            return []
        unread = [instance.why for instance in found if instance.summary is None]
        self._note("instances", "; ".join(unread))
        return found

    def _note(self, source: str, sentence: str) -> None:
        self._errors[source] += bool(sentence)
        if sentence != self._said[source]:
            self._said[source] = sentence
            self._complain(source, sentence)


def _remedy(error: Exception) -> str:
    if isinstance(error, NotAllowed):
        return f"; {_POLICY_REMEDY}"
    return f"; {_SOCKET_REMEDY}" if isinstance(error.__cause__, PermissionError) else ""
