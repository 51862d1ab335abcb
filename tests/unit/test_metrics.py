"""The metrics have the documented names, values and descriptions."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.registry import Collector

from multibinder import BinderStatus, Counters, HolderStatus, ListenerHealth, OwnerStatus
from multibinder.observe.instances import Instance, instances
from multibinder.observe.metrics.binder import of_the_binder
from multibinder.observe.metrics.family import Counter, Gauge, Histogram, Info
from multibinder.observe.metrics.instances import of_the_instances
from multibinder.observe.metrics.scrape import FAMILIES, Scrape
from multibinder.wire.instance_summary import InstanceSummary
from multibinder.wire.status import REQUEST_BOUNDS_S
from tests.support import Json
from tests.support.metrics import documented, families_of, lint, samples_of

#: A name or a label that could break an exposition without escapes.
NASTY = 'a"b\\c\nd} 1 ÄÖ\u2028'
NOW = 1_800_000_000.0


def listener(**changes: Any) -> ListenerHealth:
    plain = ListenerHealth(
        address="127.0.0.1:80", name=None, owners=[], state="serving", queue=3, limit=8, backlog_requested=None,
        v6only=None, drops=4, drops_per_s=0.5, handoffs=5, created=NOW - 60, cookie=1, inode=2, holders=[],
        orphan_since=None, orphan_ttl_s=None, stalled_since=None, repairs=0, repaired_at=None, kept=False,
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


def status(*listeners: ListenerHealth, **changes: Any) -> BinderStatus:
    plain = BinderStatus(
        format=1, version="1.2", pid=1, started=NOW - 9, starts=2, upgrades=1, policy=None, clients=1, descriptors=20,
        descriptors_limit=100, descriptors_in_flight=0, listeners_limit=16, keeper="guard", kept=1, kept_limit=9,
        looked_at=None, counters=Counters(), listeners=list(listeners),
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


class Fixed(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self.metrics = metrics

    def collect(self) -> list[Metric]:
        return self.metrics


def registry_of(*metrics: Metric) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(Fixed(list(metrics)))
    return registry


def text_of(*metrics: Metric) -> str:
    return generate_latest(registry_of(*metrics)).decode()


def of(*listeners: ListenerHealth, **changes: Any) -> dict[str, float]:
    return samples_of(text_of(*of_the_binder(status(*listeners, **changes), NOW)))


def everything() -> list[Metric]:
    """Return every metric family with a sample, except those of the exporter itself."""
    full = listener(
        backlog_requested=9, orphan_ttl_s=600.0, orphan_since=NOW - 1, owners=[OwnerStatus(NASTY, 0)], name=NASTY,
        holders=[HolderStatus(1, "x", "accepting")],
    )  # fmt: skip
    counters = Counters(request_buckets=[1] * (len(REQUEST_BOUNDS_S) + 1))
    seen = Instance("web", None), Instance(NASTY, None)
    return [
        *of_the_binder(status(full, looked_at=NOW, counters=counters), NOW),
        *of_the_instances(seen),
    ]


def test_exactly_the_existing_metrics_are_documented_with_their_types_and_labels() -> None:
    kinds = {Gauge: "gauge", Counter: "counter", Info: "gauge", Histogram: "histogram"}
    in_code = {family.name: (kinds[type(family)], frozenset(family.labels)) for family in FAMILIES}
    assert len(in_code) == len(FAMILIES)
    assert {each.name: (each.type, each.labels) for each in documented().values()} == in_code
    for each in documented().values():
        assert each.meaning
        assert each.unit
        assert ("seconds" in each.unit) == ("_seconds" in each.name), each.name


def test_the_exposed_metrics_agree_with_their_descriptions(tmp_path: Path) -> None:
    write_summary(tmp_path, "web", plain_summary())
    scrape = Scrape(str(tmp_path / "none"), {"haproxy": str(tmp_path)}, "1.2", 1, lambda source, sentence: None)
    metrics = [*everything(), *scrape.collect()]
    kinds = {(metric.name + "_total" if metric.type == "counter" else metric.name) + "_info" * (metric.type == "info")
             for metric in metrics}  # fmt: skip
    assert kinds == {family.name for family in FAMILIES}
    labels = {family.name: set(family.labels) for family in FAMILIES}
    for metric in metrics:
        for sample in metric.samples:
            described = labels.get(sample.name) or labels.get(re.sub("_(bucket|sum|count)$", "", sample.name), set())
            assert sample.labels.keys() - {"le"} == described, sample


def test_the_exposition_follows_the_conventions() -> None:
    text = text_of(*everything())
    assert len(families_of(text)) > 40
    assert list(lint(text)) == []


NOT_CUMULATIVE = """# HELP multibinder_h Text.
# TYPE multibinder_h histogram
multibinder_h_bucket{le="1"} 2
multibinder_h_bucket{le="+Inf"} 1
multibinder_h_sum 1
multibinder_h_count 1
"""


@pytest.mark.parametrize(
    "wrong",
    [
        "# HELP multibinder_x Text.\n# TYPE multibinder_x counter\n",
        "# HELP multibinder_x_total Text.\n# TYPE multibinder_x_total gauge\n",
        "# HELP multibinder_x_milliseconds Text.\n# TYPE multibinder_x_milliseconds gauge\n",
        "# HELP multibinder_x_gauge Text.\n# TYPE multibinder_x_gauge gauge\n",
        "# HELP other_x Text.\n# TYPE other_x gauge\n",
        "# TYPE multibinder_x gauge\n",
        '# HELP multibinder_x Text.\n# TYPE multibinder_x gauge\nmultibinder_x{instance="y"} 1\n',
        NOT_CUMULATIVE,
    ],
)
def test_a_break_of_the_conventions_would_be_noticed(wrong: str) -> None:
    assert list(lint(wrong))


def openmetrics_of(registry: CollectorRegistry) -> list[Metric]:
    text = generate_openmetrics(registry).decode()  # type: ignore[no-untyped-call, unused-ignore]
    return list(parse_openmetrics(text))  # type: ignore[no-untyped-call, unused-ignore]


def test_both_formats_can_have_any_text_in_a_label() -> None:
    registry = registry_of(*everything())
    for families in (families_of(generate_latest(registry).decode()), openmetrics_of(registry)):
        labels = {value for family in families for sample in family.samples for value in sample.labels.values()}
        assert NASTY in labels


def test_a_binder_that_did_not_answer_is_down_and_has_no_other_metrics() -> None:
    assert samples_of(text_of(*of_the_binder(None, NOW))) == {"multibinder_up": 0}


def test_an_unknown_value_is_absent_and_never_zero() -> None:
    samples = of(listener(holders=None, backlog_requested=None))
    of_it = '{address="127.0.0.1:80",name=""}'
    assert samples[f"multibinder_listener_holders_hidden{of_it}"] == 1
    for absent in ("listener_holders{", "listener_backlog_requested{", "listener_orphan_ttl", "last_look", "duration"):
        assert not any(name.startswith(f"multibinder_{absent}") for name in samples), absent


def test_holders_are_counted_by_role_and_states_are_one_of_four() -> None:
    held = [HolderStatus(1, "a", "accepting"), HolderStatus(2, "b", "draining"), HolderStatus(3, "b", "draining")]
    samples = of(listener(holders=held, state="stalled", stalled_since=NOW - 30))
    counts = [samples[f'multibinder_listener_holders{{address="127.0.0.1:80",name="",role="{role}"}}']
              for role in ("accepting", "draining", "holding")]  # fmt: skip
    assert counts == [1, 2, 0]
    states = {name: value for name, value in samples.items() if name.startswith("multibinder_listener_state{")}
    assert sum(states.values()) == 1
    assert states['multibinder_listener_state{address="127.0.0.1:80",name="",state="stalled"}'] == 1
    assert samples['multibinder_listener_stalled_seconds{address="127.0.0.1:80",name=""}'] == 30
    assert samples['multibinder_listener_orphan_seconds{address="127.0.0.1:80",name=""}'] == 0


def test_the_buckets_of_the_binder_become_cumulative() -> None:
    buckets = [5, 0, 1, 0, 0, 0, 0, 0, 0, 2]
    samples = of(counters=Counters(request_buckets=buckets, request_seconds=0.25))
    name = "multibinder_request_duration_seconds"
    assert (samples[f"{name}_count"], samples[f"{name}_sum"]) == (8, 0.25)
    assert [samples[f'{name}_bucket{{le="{bound}"}}'] for bound in ("0.0001", "0.00025", "0.0005", "0.1", "+Inf")] == [
        5, 5, 6, 6, 8,
    ]  # fmt: skip


def test_methods_and_reasons_are_exposed_before_they_are_first_counted() -> None:
    samples = of(counters=Counters(requests={"bind": 3}, refusals={"rate": 1}))
    assert samples['multibinder_requests_total{method="bind"}'] == 3
    assert samples['multibinder_requests_total{method="release"}'] == 0
    assert samples['multibinder_refusals_total{reason="rate"}'] == 1
    assert samples['multibinder_refusals_total{reason="policy"}'] == 0


def plain_summary(**changes: Any) -> Json:
    return {
        "version": 1, "name": "web", "state": "running", "master": {"pid": os.getpid(), "start_ticks": 0},
        "generation": 2, "fallback": False, "written": NOW, "started": NOW, "last_load": NOW, "last_success": NOW,
        "last_failure": NOW, "last_failure_phase": None, "starts_total": 1, "reloads_total": 1, "failures_total": 0,
        "workers": [], "old_workers": [], "binds": [], "sources": [], "directories": [], "of_a_later_version": {},
        **changes,
    }  # fmt: skip


def write_summary(runtime: Path, name: str, summary: object) -> Path:
    (runtime / name).mkdir()
    path = runtime / name / "summary.json"
    path.write_bytes(summary if isinstance(summary, bytes) else msgspec.json.encode(summary))
    return path


def test_an_instance_is_up_while_its_master_lives_and_is_the_same_process(tmp_path: Path) -> None:
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    masters = {
        "a-lives": {"pid": os.getpid(), "start_ticks": ticks},
        "b-unknown-start": {"pid": os.getpid(), "start_ticks": 0},
        "c-number-reused": {"pid": os.getpid(), "start_ticks": ticks - 1},
        "d-dead": {"pid": 2**22 + 1, "start_ticks": ticks},
        "e-none": None,
    }
    for name, master in masters.items():
        write_summary(tmp_path, name, plain_summary(master=master))
    assert [instance.up for instance in instances(str(tmp_path))] == [True, True, False, False, False]


def test_workers_count_while_they_are_children_of_the_master(tmp_path: Path) -> None:
    master = {"pid": os.getppid(), "start_ticks": 0}
    write_summary(tmp_path, "web", plain_summary(master=master, workers=[os.getpid(), 1], old_workers=[2**22 + 1]))
    [instance] = instances(str(tmp_path))
    assert (instance.workers, instance.old_workers) == (1, 0)


def test_after_a_start_the_number_of_workers_is_not_known_yet(tmp_path: Path) -> None:
    write_summary(tmp_path, "down", plain_summary(master=None))
    write_summary(tmp_path, "up", plain_summary())
    assert [instance.workers for instance in instances(str(tmp_path))] == [0, None]


def test_without_a_runtime_directory_there_are_no_instances(tmp_path: Path) -> None:
    assert instances(str(tmp_path / "none")) == []
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert instances(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not what docs"),
        (b"[" * 100_000, "not what docs"),
        (b'{"version": 1}', "not what docs"),
        (b"\xff", "not what docs"),
        (b" " * (16 * 1024 * 1024 + 1), "more than"),
        (msgspec.json.encode(plain_summary(version=2)), "version 2"),
        (msgspec.json.encode(plain_summary(generation="x")), "generation"),
    ],
)
def test_an_instance_with_an_invalid_summary_counts_as_unreadable(tmp_path: Path, content: bytes, why: str) -> None:
    write_summary(tmp_path, "web", content)
    write_summary(tmp_path, "other", plain_summary())
    other, web = instances(str(tmp_path))
    assert web.summary is None
    assert why in web.why
    samples = samples_of(text_of(*of_the_instances([other, web])))
    assert [name for name in samples if 'name="web"' in name] == [
        'multibinder_instance_readable{driver="haproxy",name="web"}'
    ]
    assert samples['multibinder_instance_readable{driver="haproxy",name="web"}'] == 0
    assert samples['multibinder_instance_generation{driver="haproxy",name="other"}'] == 2


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)])
def test_a_summary_that_is_not_a_file_does_not_block_the_exporter(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "web").mkdir()
    make(tmp_path / "web" / "summary.json")
    [web] = instances(str(tmp_path))
    assert web.summary is None


def test_an_instance_name_that_is_not_utf_8_is_shown(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"w\xffb")
    os.mkdir(path)
    with open(os.path.join(path, b"summary.json"), "wb") as file:
        file.write(msgspec.json.encode(plain_summary()))
    assert 'multibinder_instance_generation{driver="haproxy",name="w\\xffb"}' in samples_of(
        text_of(*of_the_instances(instances(str(tmp_path))))
    )


def source(path: Path) -> Json:
    now = path.stat()
    return {"path": str(path), "mtime_ns": now.st_mtime_ns, "size": now.st_size, "inode": now.st_ino}


def drift(runtime: Path) -> tuple[bool | None, float]:
    found = instances(str(runtime))
    samples = samples_of(text_of(*of_the_instances(found)))
    return found[0].changed, samples['multibinder_instance_config_unknown{driver="haproxy",name="web"}']


def test_a_change_on_disk_is_shown_and_an_unknown_one_is_marked(tmp_path: Path) -> None:
    runtime, template, parts = tmp_path / "run", tmp_path / "web.cfg.j2", tmp_path / "conf.d"
    runtime.mkdir()
    parts.mkdir()
    template.write_text("one")
    (parts / "a.cfg").touch()
    absent = {"path": str(tmp_path / "maybe"), "mtime_ns": None, "size": 0, "inode": 0}
    directory = {"path": str(parts), "files": ["a.cfg"], "suffixes": [".cfg"]}
    path = write_summary(runtime, "web", plain_summary(sources=[source(template), absent], directories=[directory]))
    assert drift(runtime) == (False, 0)
    (parts / ".hidden.cfg").touch()
    (parts / "README").touch()
    assert drift(runtime) == (False, 0)
    (tmp_path / "maybe").touch()
    assert drift(runtime) == (True, 0)
    (tmp_path / "maybe").unlink()
    (parts / "b.cfg").touch()
    assert drift(runtime) == (True, 0)
    (parts / "b.cfg").unlink()
    os.utime(template)
    assert drift(runtime) == (True, 0)
    template.unlink()
    assert drift(runtime) == (True, 0)
    for untold in (f"{path}/below-a-file", "a\0b"):
        strange = {"path": untold, "mtime_ns": 1, "size": 1, "inode": 1}
        path.write_bytes(msgspec.json.encode(plain_summary(sources=[strange])))
        assert drift(runtime) == (None, 1)
    # One visible change is enough.
    path.write_bytes(msgspec.json.encode(plain_summary(sources=[strange], directories=[{**directory, "files": []}])))
    assert drift(runtime) == (True, 0)


def test_a_scrape_error_is_logged_once_and_its_end_is_logged_once(tmp_path: Path) -> None:
    said: list[tuple[str, str]] = []
    scrape = Scrape(str(tmp_path / "none"), {"haproxy": str(tmp_path)}, "1.2", 1, lambda *what: said.append(what))
    errors = []
    path = write_summary(tmp_path, "web", b"{")
    for _ in range(2):
        errors.append(samples_of(text_of(*scrape.collect())))
    path.write_bytes(msgspec.json.encode(plain_summary()))
    errors.append(samples_of(text_of(*scrape.collect())))
    assert [each['multibinder_exporter_scrape_errors_total{source="instances"}'] for each in errors] == [1, 2, 2]
    assert [each['multibinder_exporter_scrape_errors_total{source="binder"}'] for each in errors] == [1, 2, 3]
    assert [source for source, _ in said] == ["binder", "instances", "instances"]
    assert "there is no such socket" in said[0][1]
    assert said[2][1] == ""


def test_a_scrape_of_a_binder_that_hangs_times_out(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        scrape = Scrape(str(tmp_path / "s"), {"haproxy": str(tmp_path)}, "1.2", 0.2, lambda *what: None)
        began = time.monotonic()
        assert samples_of(text_of(*scrape.collect()))["multibinder_up"] == 0
        assert time.monotonic() - began < 10


def test_instances_of_both_drivers_may_have_one_name(tmp_path: Path) -> None:
    directories = {}
    for driver in ("haproxy", "run"):
        (tmp_path / driver / "web").mkdir(parents=True)
        directories[driver] = str(tmp_path / driver)
        summary = InstanceSummary.of_new_instance("web")
        summary = msgspec.structs.replace(summary, driver=driver, wanted=3, restarts_total=2, activity="canary")
        (tmp_path / driver / "web" / "summary.json").write_bytes(msgspec.json.encode(summary))
    scrape = Scrape(str(tmp_path / "none"), directories, "1.2", 1, lambda *what: None)
    samples = samples_of(text_of(*scrape.collect()))
    assert samples['multibinder_instance_up{driver="haproxy",name="web"}'] == 0
    assert samples['multibinder_instance_up{driver="run",name="web"}'] == 0
    assert samples['multibinder_instance_copies_wanted{driver="run",name="web"}'] == 3
    assert samples['multibinder_instance_restarts_total{driver="run",name="web"}'] == 2
    assert samples['multibinder_instance_canary{driver="run",name="web"}'] == 1
    assert 'multibinder_instance_copies_wanted{driver="haproxy",name="web"}' not in samples
