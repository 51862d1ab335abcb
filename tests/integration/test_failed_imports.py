"""A start that cannot import its modules says so in one sentence, as it may be after an upgrade's execve(2)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.commands import clean_environment
from tests.support.waiting import PATIENCE_S

#: Run the code of a module whose imports find no free descriptor.
NO_DESCRIPTORS = """
import importlib.util, resource, sys
import multibinder.cli.shortage
spec = importlib.util.find_spec(sys.argv[1])
code = spec.loader.get_code(spec.name)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
exec(code, {"__name__": "__main__"})
"""
#: The same where a module is missing.
NO_MODULE = NO_DESCRIPTORS.replace(
    "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))", "sys.modules['msgspec'] = None"
)


@pytest.mark.parametrize("module", ["multibinder.cli.binder_main", "multibinder.cli.guard_main"])
@pytest.mark.parametrize(
    ("code", "why"), [(NO_DESCRIPTORS, "Too many open files"), (NO_MODULE, "import of msgspec halted")]
)
def test_a_start_that_cannot_import_its_modules_says_why_without_a_traceback(module: str, code: str, why: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, module, "{}"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("multibinder: the system refused what a start needs: ")
    assert why in line
    assert "(at " in line
