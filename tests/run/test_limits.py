"""No further process can be started: the old copy serves, and everything goes on as soon as there can be one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.run.support import SERVER, Service
from tests.support import Binder, installation
from tests.support.stranger import as_user

_UID = 4243


@pytest.fixture
def service(run_dir: Path, host: str, start_binder: Callable[..., Binder]) -> Iterator[Service]:
    """An instance of a user whose number of processes can be limited: root's cannot be (setrlimit(2))."""
    user = as_user(_UID)
    everybody = installation.for_everybody()
    run_dir.chmod(0o711)
    own = run_dir / "own"
    own.mkdir()
    shutil.copy(SERVER, own / SERVER.name)
    os.chown(own, _UID, _UID)
    with Service(run_dir, host, start_binder("--mode", "0666").socket_path) as made:
        made.server, made.python = own / SERVER.name, str(everybody.python)
        made.runtime, made.files = own / "instances", own / "instances" / "web"
        made.start(prefix=user, program=everybody.program)
        made.until_serving()
        yield made


def _limit(service: Service, processes: int) -> None:
    """Limit the processes of the user, for ``run`` alone."""
    command = ["prlimit", f"--pid={service.process.pid}", f"--nproc={processes}:"]
    subprocess.run([*as_user(_UID), *command], check=True)


def test_a_reload_for_which_fork_is_refused_leaves_the_old_copy(service: Service) -> None:
    old = service.pids()
    _limit(service, 1)
    report = service.reload()
    assert not report.ok
    assert "no process can be started" in report.message
    assert service.pids() == old
    _limit(service, 10_000)
    assert service.reload().ok


def test_a_crash_while_fork_is_refused_is_made_up_for_as_soon_as_it_is_not(service: Service) -> None:
    _limit(service, 1)
    os.kill(service.pids()[0], signal.SIGKILL)
    service.wait_for_log("no process can be started")
    _limit(service, 10_000)
    assert service.get()
    service.until_serving()
