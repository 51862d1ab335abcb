"""Run one instance: ``multibinder run`` becomes ``python -m multibinder.cli.run_main SETTINGS``.

The process lives for months, and imports neither click nor the client library.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from typing import NoReturn

from multibinder.kernel.std_descriptors import open_std_descriptors
from multibinder.launch.errors import LaunchError
from multibinder.launch.exec import environment
from multibinder.launch.log import InstanceLog
from multibinder.launch.run.files import MASTER_LOCK, PROGRAM, RunInstance
from multibinder.launch.run.settings import RunSettings
from multibinder.launch.run.spawn import Inheritance
from multibinder.launch.run.summary import RunSummary
from multibinder.launch.run.supervisor import Supervisor
from multibinder.wire.instance_summary import RUN_PROCESS


def main() -> NoReturn:
    """Run the instance with the settings in the first argument, until it ends."""
    open_std_descriptors()
    inheritance = Inheritance()
    _take_name()
    settings = RunSettings.of_text(sys.argv[1])
    log = InstanceLog(PROGRAM, settings.name)
    try:
        files = RunInstance(settings.directory, settings.name)
        files.create()
        _be_the_only_one(files, settings.name)
        try:
            files.write_record("instance.json", settings)
        except LaunchError as error:
            # The copies of a 'run' that was killed must not stay alone because the disk is full.
            log.write("warning", f"{error}; if 'run' is killed, no command will find the instance")
        summary = RunSummary(files)
        optional = settings.service.environment_file or ""
        sources = [path for path in (settings.config, optional.removeprefix("-")) if path]
        summary.files_read(sources)
        supervisor = Supervisor(
            settings, files, environment.callers(), inheritance, log.write,  # type: ignore[arg-type]
            lambda: summary.files_read(sources),
        )  # fmt: skip
        instance = supervisor.instance
        instance.on_change.append(summary.update)
        instance.on_failure.append(summary.failed)
        instance.on_success.append(lambda: summary.succeeded(fallback=bool(instance.fallback)))
        summary.began(0)
        code = supervisor.run()
        summary.stopped()
    except LaunchError as error:
        sys.exit(f"{PROGRAM}: {error}")
    except OSError as error:
        sys.exit(f"{PROGRAM}: {error.filename or settings.directory}: {(error.strerror or str(error)).lower()}")
    sys.exit(code)


def _take_name() -> None:
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="utf-8") as file:
        file.write(RUN_PROCESS)


def _be_the_only_one(files: RunInstance, name: str) -> None:
    """Take the lock of the instance for the life of this process. Raises LaunchError if another one has it, OSError."""
    descriptor = os.open(files.path(MASTER_LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise LaunchError(
            f"{name} runs already (pid {pid}): 'multibinder reload {name}' replaces its copies, 'multibinder stop "
            f"{name}' ends it; choose another --name for a second instance"
        ) from None
    with contextlib.suppress(OSError):  # the disk is full, and the PID is for messages
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


if __name__ == "__main__":
    main()
