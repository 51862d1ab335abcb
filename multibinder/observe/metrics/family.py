"""Descriptions of metrics: name, help and labels, without a value."""

from __future__ import annotations

import msgspec
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)


class Gauge(msgspec.Struct, frozen=True):
    """A number that goes up and down, or 1 and 0 for yes and no."""

    name: str
    help: str
    labels: tuple[str, ...] = ()

    def empty(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(self.name, self.help, labels=self.labels)

    def of(self, value: float) -> GaugeMetricFamily:
        """Return the family with one sample that has no label."""
        family = self.empty()
        family.add_metric((), value)
        return family


class Counter(msgspec.Struct, frozen=True):
    """A number that only grows, except at a restart. Its name ends in ``_total``."""

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
    """A constant 1 with the information in its labels. Its name ends in ``_info``.

    ``of_labels`` identify the subject, ``keys`` are the labels with the information.
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
    """A distribution, as the number of values up to each bound."""

    name: str
    help: str
    labels: tuple[str, ...] = ()

    def empty(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self.name, self.help, labels=self.labels)


Described = Gauge | Counter | Info | Histogram
