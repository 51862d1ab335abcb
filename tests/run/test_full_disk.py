"""The directory of the instances has no space left."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.run.conftest import Serve
from tests.support import require
from tests.support.processes import is_alive
from tests.support.waiting import wait_until


@pytest.fixture
def small_disk(run_dir: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    require("root", os.geteuid() == 0, "mounting a small file system needs root")
    directory = run_dir / "small"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(directory)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    require("root", mounted.returncode == 0, f"cannot mount a tmpfs: {mounted.stderr}")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_records_on_a_full_disk_cost_warnings_and_the_next_run_still_finds_the_copy(
    make_service: Serve, small_disk: Path
) -> None:
    service = make_service()
    service.runtime, service.files = small_disk, small_disk / "web"
    service.start()
    service.until_serving()
    _fill(small_disk)
    report = service.reload()
    assert report.ok, report
    service.wait_for_log("cannot write: no space left on device")
    [second] = report.new
    service.kill()
    service.start()
    service.wait_for_log(f"copy {second} of an earlier 'run' serves on")
    wait_until(lambda: not is_alive(second), "it is replaced, because its settings are not known", log=service.log)
    [third] = service.until_serving().copies
    assert service.own_processes() == {third.pid}
    assert service.get().endswith(str(third.pid))
    assert service.stop() == 0


def _fill(directory: Path) -> None:
    with (directory / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 1024)
