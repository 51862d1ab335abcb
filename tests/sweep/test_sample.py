"""A sample of the sweep: one call of each of these kinds fails, in the middle of the life."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support import own_host, require
from tests.sweep.life import LIVES
from tests.sweep.strace import Call, Injection, calls_of

_SAMPLE = (
    *("binder:accept4:EMFILE", "binder:clone:EAGAIN", "binder:epoll_ctl:ENOSPC", "binder:execve:ENOENT"),
    *("binder:getsockopt:ENOBUFS", "binder:listen:EADDRINUSE", "binder:memfd_create:ENOMEM", "binder:pipe2:EMFILE"),
    *("binder:pwrite64:ENOSPC", "binder:recvmsg:ENOMEM", "binder:rename:ENOSPC", "binder:sendmsg:ENOBUFS"),
    *("binder:socket:EMFILE", "guard:clone:EAGAIN", "guard:epoll_ctl:ENOMEM", "guard:pipe2:EMFILE"),
    *("guard:recvmsg:ENOMEM", "guard:write:EIO"),
)


@functools.cache
def recorded(life: str) -> tuple[Call, ...]:
    """Return the calls of a life in which none fails."""
    with tempfile.TemporaryDirectory(prefix="mb-") as directory:
        plain = LIVES[life](Path(directory), own_host(), None)
        report = plain.run()
        assert not report.findings, f"{report.findings}\n{report.log}"
        return tuple(calls_of(plain.trace_path))


@pytest.mark.parametrize("kind", _SAMPLE)
def test_a_call_that_fails_costs_no_listener(kind: str, run_dir: Path) -> None:
    strace = shutil.which("strace")
    may_trace = strace and subprocess.run([strace, "-o", "/dev/null", "true"], capture_output=True, check=False)
    require("strace", may_trace and may_trace.returncode == 0, "there is no strace, or it may not trace a process")
    life, name, error = kind.split(":")
    calls = [call for call in recorded(life) if call.name == name]
    injection = Injection(name, calls[len(calls) // 2].nth, error)
    report = LIVES[life](run_dir, own_host(), injection).run()
    assert not report.findings, f"{report.reached}: {report.findings}\n{report.log}"
