"""Tests that need a machine of their own: nobody else's processes, and network counters that only they move."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.support.requirements import require
from tests.support.waiting import PATIENCE_S

_INSIDE = "MULTIBINDER_TEST_INSIDE"


def alone(test: Callable[..., None]) -> Callable[..., None]:
    """Run this one test by a pytest of its own, in new PID, network and mount namespaces. It can look into every
    process there is, where a container's root may not look into PID 1; it is PID 1, and nothing of it is left."""

    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        if _INSIDE in os.environ:
            test(**fixtures)
            return
        require("root", os.geteuid() == 0, "making namespaces needs root")
        for tool in ("unshare", "ip"):
            require(tool, shutil.which(tool), f"there is no {tool}")
        unshare = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        possible = subprocess.run([*unshare, "true"], capture_output=True, text=True, check=False)
        require("namespaces", possible.returncode == 0, f"no namespaces can be made here: {possible.stderr}")
        name = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", name]
        done = subprocess.run(
            [*unshare, "sh", "-c", 'ip link set lo up && "$@"', "sh", *pytest_],
            env={**os.environ, _INSIDE: "1"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S * 6,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if "1 skipped" in done.stdout:
            pytest.skip(done.stdout.strip().splitlines()[-2])

    return run
