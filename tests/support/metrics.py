"""What the tests of the exporter share: samples by their text, as in ``up{name="web"}``, read by prometheus-client."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"

Samples = dict[str, float]


class Documented(NamedTuple):
    name: str
    type: str
    labels: frozenset[str]
    unit: str
    meaning: str


def families_of(text: str) -> list[Metric]:
    return list(text_string_to_metric_families(text))


def samples_of(text: str) -> Samples:
    """Return every sample by its name and labels. Labels are in alphabetical order."""
    samples: Samples = {}
    for family in families_of(text):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert key not in samples, f"{key} appears twice"
            samples[key] = sample.value
    return samples


def documented() -> dict[str, Documented]:
    return {each.name: each for each in _rows()}


def _rows() -> Iterator[Documented]:
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("| `multibinder_"):
            name, kind, labels, unit, meaning = (cell.strip() for cell in line.strip("|").split("|"))
            yield Documented(name.strip("`"), kind, frozenset(re.findall(r"`(\w+)`", labels)), unit, meaning)


def series_names() -> set[str]:
    """Return the names that a query may use. A histogram has one for each of its series."""
    names = set()
    for each in documented().values():
        names |= (
            {f"{each.name}_{part}" for part in ("bucket", "sum", "count")} if each.type == "histogram" else {each.name}
        )
    return names


def lint(text: str) -> Iterator[str]:
    """Yield what breaks the conventions (prometheus.io/docs/practices/naming), and what a scraper would refuse."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    for name, kind in kinds.items():
        words = name.split("_")
        if not re.fullmatch(r"multibinder_[a-z][a-z_]*[a-z]", name):
            yield f"{name}: not multibinder_ and words in lower case"
        if not helps.get(name, "").strip():
            yield f"{name}: no help"
        if (kind == "counter") != (words[-1] == "total"):
            yield f"{name}: a {kind}; those and only those that end in _total are counters"
        if words[-1] in ("count", "sum", "bucket", "created"):
            yield f"{name}: ends in what belongs to a histogram, or to OpenMetrics"
        if {kind, "gauge", "counter", "histogram"} & {*words}:
            yield f"{name}: its type is in its name"
        if found := {"ms", "milliseconds", "minutes", "hours", "kib", "kb", "percent", "microseconds"} & {*words}:
            yield f"{name}: {found} is no base unit"
        if "seconds" in words and "seconds" not in words[-2:]:
            yield f"{name}: the unit is not at its end"
        if "timestamp" in words and words[-2:] != ["timestamp", "seconds"]:
            yield f"{name}: a moment is a _timestamp_seconds"
    for family in families_of(text):
        for sample in family.samples:
            if "le" in sample.labels and not sample.name.endswith("_bucket"):
                yield f"{sample.name}: has the label le"
            if {"instance", "job"} & sample.labels.keys():
                yield f"{sample.name}: has a label of the scraper's own"
        if family.type == "histogram":
            buckets = [(s.labels["le"], s.value) for s in family.samples if s.name.endswith("_bucket")]
            counts = [value for _, value in buckets]
            [total] = [s.value for s in family.samples if s.name.endswith("_count")]
            if [float(bound) for bound, _ in buckets] != sorted({float(bound) for bound, _ in buckets}):
                yield f"{family.name}: its bounds do not grow"
            if buckets[-1][0] != "+Inf" or counts != sorted(counts) or counts[-1] != total:
                yield f"{family.name}: {buckets} are not cumulative up to +Inf and {total}"
