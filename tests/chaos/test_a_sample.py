"""A sample of the chaos: the shortest run that has each of the important actions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests.haproxy.versions import HAPROXY
from tests.support import require
from tests.support.installation import CHECKOUT

SEED, MINUTES = 2, 0.3


def test_no_promise_is_broken_by_twenty_seconds_of_kills_pauses_upgrades_and_full_disks() -> None:
    require("haproxy", shutil.which(HAPROXY), f"there is no {HAPROXY}")
    require("root", os.geteuid() == 0, "a small disk and another user need root")
    command = [sys.executable, "-m", "tests.chaos", f"--seed={SEED}", f"--minutes={MINUTES}", "--rate=100"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
