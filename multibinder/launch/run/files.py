"""The directory of one instance of ``run``.

::

    RUNTIME/NAME/           as multibinder.launch.instance_files describes it, and:
        instance.json       the RunSettings of the last start
        master.lock         held by the process ``run`` while it lives
        control.sock        the commands reload, stop and instances ask here (report.py)
        last-good.json      the ServiceSettings with which a copy was last ready
"""

from __future__ import annotations

import os

from multibinder.launch.instance_files import InstanceFiles
from multibinder.launch.run.report import CONTROL_SOCKET
from multibinder.launch.run.settings import RunSettings, ServiceSettings

PROGRAM = "multibinder run"
RUNTIME_DIR_VARIABLE = "MULTIBINDER_RUN_RUNTIME_DIR"
#: ``run`` holds it as long as it lives.
MASTER_LOCK = "master.lock"
LAST_GOOD_FILE = "last-good.json"


class RunInstance(InstanceFiles):
    """Reads and writes the files of one instance of ``run``."""

    def __init__(self, runtime_directory: str, name: str) -> None:
        super().__init__(runtime_directory, name, f"multibinder run --name {name} -b ADDRESS -- COMMAND")

    @property
    def control_path(self) -> str:
        return self.path(CONTROL_SOCKET)

    def read_settings(self) -> RunSettings:
        """Read how the instance was started. Raises NoSuchInstance, NotTrusted."""
        return self.read_invocation_as(RunSettings)

    def read_last_good(self) -> ServiceSettings | None:
        """Read the settings with which a copy was last ready. Raises NotTrusted, OSError."""
        return self.read_record(LAST_GOOD_FILE, ServiceSettings)


def default_runtime_directory() -> str:
    """Return the directory in /run for root; else one in $XDG_RUNTIME_DIR (basedir specification) or /tmp."""
    if os.geteuid() == 0:
        return "/run/multibinder-run"
    return os.path.join(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/{os.geteuid()}", "multibinder-run")  # noqa: S108
