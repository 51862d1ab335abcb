"""Describe metrics by name, help and labels, before they have values."""

from __future__ import annotations

import msgspec
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)


class Gauge(msgspec.Struct, frozen=True):
    """A number that rises and falls, or 1 or 0 for yes or no."""

    name: str
    help: str
    labels: tuple[str, ...] = ()

    def empty(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(self.name, self.help, labels=self.labels)

    def of(self, value: float) -> GaugeMetricFamily:
        """Return the family with its only sample."""
        family = self.empty()
        family.add_metric((), value)
        return family


class Counter(msgspec.Struct, frozen=True):
    """A number that only grows, except for a reset at a restart. Its name ends in ``_total``."""

    name: str
    help: str
    labels: tuple[str, ...] = ()

    def empty(self) -> CounterMetricFamily:
        return CounterMetricFamily(self.name, self.help, labels=self.labels)

    def of(self, value: float) -> CounterMetricFamily:
        family = self.empty()
        family.add_metric((), value)
        return family


class Info(msgspec.Struct, frozen=True):
    """A metric that is always 1 and tells its facts in labels. Its name ends in ``_info``.

    ``of_labels`` name what the facts are about, and ``keys`` the facts.
    """

    name: str
    help: str
    keys: tuple[str, ...]
    of_labels: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        return (*self.of_labels, *self.keys)

    def empty(self) -> InfoMetricFamily:
        return InfoMetricFamily(self.name.removesuffix("_info"), self.help, labels=self.of_labels)


class Histogram(msgspec.Struct, frozen=True):
    """A distribution in buckets."""

    name: str
    help: str
    labels: tuple[str, ...] = ()

    def empty(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self.name, self.help, labels=self.labels)


Described = Gauge | Counter | Info | Histogram
