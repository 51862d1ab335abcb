"""The summary and the status document have the documented fields, and the summary counts every reload."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import msgspec
import pytest
from multibinder_haproxy.errors import BinderAway, BindRefused, ConfigRefused, ReloadFailed, TemplateFailure
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.records import ReloadReport
from multibinder_haproxy.status import Status

from multibinder.kernel.process import is_child, start_ticks_of
from multibinder.launch.log import InstanceLog
from multibinder.launch.summary import LoadedConfiguration, SummaryWriter
from multibinder.wire.instance_summary import InstanceSummary

DOCUMENT = Path(__file__).parents[2] / "docs" / "instance-summary.md"


def documented(heading: str) -> set[str]:
    """Return the names in the first column of the table below a heading."""
    section = DOCUMENT.read_text().partition(f"\n## {heading}")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


@pytest.mark.parametrize(
    ("heading", "kind"),
    [("The file, version 1", InstanceSummary), ("`multibinder-haproxy status --json`, format 1", Status)],
)
def test_every_field_is_documented_and_nothing_else(heading: str, kind: type[msgspec.Struct]) -> None:
    assert documented(heading) == {*kind.__struct_fields__}


def test_the_fields_of_the_last_reload_are_documented() -> None:
    [row] = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `last_reload`")]
    assert {*re.findall(r"`(\w+)`", row)} - {"last_reload", "reload"} == {*ReloadReport.__struct_fields__} - {
        "started_s"
    }


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    instance = Instance(str(tmp_path), "web")
    instance.create()
    return instance


@pytest.mark.parametrize(
    ("failure", "phase"),
    [
        (TemplateFailure(""), "template"),
        (BindRefused(""), "binds"),
        (BinderAway(""), "binds"),
        (ConfigRefused(""), "check"),
        (ReloadFailed(""), "load"),
        (TimeoutError(), "load"),
        (OSError(), "load"),
    ],
)
def test_a_failure_has_the_phase_in_which_it_happened(instance: Instance, failure: Exception, phase: str) -> None:
    instance.summary.reload_refused(failure)
    found = instance.summary.read()
    assert found is not None
    assert (found.last_failure_phase, found.failures_total, found.reloads_total) == (phase, 1, 1)


def test_no_count_is_lost_when_several_write_at_once(instance: Instance) -> None:
    def refuse() -> None:
        for _ in range(20):
            instance.summary.reload_refused(ConfigRefused(""))

    threads = [threading.Thread(target=refuse) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = instance.summary.read()
    assert found is not None
    assert found.reloads_total == found.failures_total == 80


@pytest.mark.parametrize("content", [b"", b'{"version":1,"na', b'{"version":2,"name":"web","reloads_total":7}', b"[]"])
def test_an_invalid_summary_is_replaced_by_a_valid_one(instance: Instance, content: bytes) -> None:
    Path(instance.directory, "summary.json").write_bytes(content)
    assert instance.summary.read() is None
    instance.summary.stopping()
    found = instance.summary.read()
    assert found is not None
    assert (found.state, found.reloads_total) == ("stopping", 0)


def test_an_instance_that_cannot_be_written_gives_one_warning_and_no_exception(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    missing = Instance(str(tmp_path), "nowhere")
    for _ in range(3):
        missing.summary.stopping()
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "nowhere/summary.json: cannot write: no such file or directory" in said


def test_only_an_existing_child_of_the_master_is_a_child() -> None:
    assert start_ticks_of(2**31 - 1) == 0
    assert not is_child(1, 2**31 - 1)
    assert is_child(1, 0)


class Records:
    """A summary beside a record of the last load, as a re-exec writes it."""

    def __init__(self, directory: Path) -> None:
        self.generation = 0
        self.writer = SummaryWriter(str(directory), "web", InstanceLog("haproxy", "web"), self._loaded)

    def _loaded(self) -> LoadedConfiguration:
        return LoadedConfiguration(self.generation, False, 0.0, [f"bind {self.generation}"], [], [])

    def began(self, generation: int, failure: Exception | None = None) -> InstanceSummary:
        self.generation = generation
        self.writer.reload_began(generation, os.getpid(), [1], failure)
        return self.writer.read_or_new()


@pytest.fixture
def records(tmp_path: Path) -> Records:
    records = Records(tmp_path)
    records.generation = 1
    records.writer.started(1, os.getpid(), None)
    return records


def test_reloads_that_follow_one_another_too_quickly_to_be_seen_are_counted(records: Records) -> None:
    found = records.began(4)
    assert (found.generation, found.starts_total, found.reloads_total) == (4, 1, 3)


def test_a_reload_that_two_processes_see_is_counted_once(records: Records) -> None:
    records.began(2, ReloadFailed(""))
    found = records.began(2, ReloadFailed(""))
    assert (found.reloads_total, found.failures_total) == (1, 1)


def test_a_reload_of_a_master_whose_start_was_not_seen_is_one_reload(records: Records) -> None:
    records.writer.stopped()
    assert records.began(3).reloads_total == 1


def test_the_end_of_a_reload_tells_nothing_of_a_later_one(records: Records) -> None:
    records.began(2)
    records.generation = 3
    records.writer.reload_ended(2, [5], None)
    found = records.writer.read_or_new()
    assert (found.generation, found.reloads_total, found.binds) == (2, 1, ["bind 2"])
    found = records.began(3)
    assert (found.generation, found.reloads_total, found.binds) == (3, 2, ["bind 3"])
