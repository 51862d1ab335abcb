"""``show proc`` of each version of HAProxy, as recorded in tests/unit/show_proc.

``started``: after the start. ``reloaded``: after a reload, while the first worker drains. ``failed``: after one more,
which HAProxy refused. ``died``: after a reload whose worker died at its start.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from multibinder_haproxy.show_proc import Processes, Worker, parse_processes

RECORDED = Path(__file__).parent / "show_proc"
VERSIONS = ["2.4", "2.6", "2.8", "3.0", "3.2", "3.4", "3.5-dev"]


def read(version: str, name: str) -> Processes:
    processes = parse_processes((RECORDED / f"{version}-{name}.txt").read_text())
    assert processes is not None
    return processes


def test_the_list_of_2_4_with_its_other_columns_is_read_by_its_header() -> None:
    version = "2.4.0-6cbbecf09"
    assert read("2.4", "reloaded") == Processes(12975, version, None, [Worker(13012, 0)], [Worker(12978, 1)])


def test_the_list_of_2_6_is_read_by_its_header() -> None:
    version = "2.6.12-1+deb12u4"
    assert read("2.6", "failed") == Processes(13455, version, 1, [Worker(13469, 1)], [Worker(13458, 2)])


@pytest.mark.parametrize("version", VERSIONS)
def test_after_a_reload_the_new_worker_serves_and_the_old_one_drains(version: str) -> None:
    [first] = read(version, "started").serving
    reloaded = read(version, "reloaded")
    [new] = reloaded.serving
    assert reloaded.draining == [first]
    assert reloaded.new_workers([first]) == [new]
    assert not reloaded.last_load_failed
    assert not reloaded.gave_up([first])
    assert reloaded.version.startswith(version)


@pytest.mark.parametrize("version", VERSIONS)
def test_after_a_failed_reload_the_youngest_worker_serves_on_and_haproxy_has_given_up(version: str) -> None:
    before, failed = read(version, "reloaded"), read(version, "failed")
    assert failed.serving == before.serving
    assert failed.draining == before.draining
    assert failed.last_load_failed
    assert failed.gave_up([*before.serving, *before.draining])


@pytest.mark.parametrize("version", ["2.6", "3.2", "3.4", "3.5-dev"])
def test_a_load_whose_worker_died_at_its_start_has_failed(version: str) -> None:
    processes = read(version, "died")
    assert processes.gave_up([worker.pid for worker in processes.old_workers])


def test_a_worker_that_still_loads_is_a_new_one_also_after_an_earlier_failure() -> None:
    loading = Processes(1, "3.2.0", 1, [Worker(30, 0)], [Worker(20, 1), Worker(10, 2)])
    assert loading.new_workers([10, 20]) == [30]
    assert not loading.gave_up([10, 20])


def test_other_output_is_not_a_list_of_processes() -> None:
    for text in ("", "\n", "Unknown command\n", "#<PID>  <type>\n", "# workers\n1 worker 0 0d00h00m00s 3.2\n"):
        assert parse_processes(text) is None
