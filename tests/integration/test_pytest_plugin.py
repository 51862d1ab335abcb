"""The fixture ``multibinder_binder``, in runs of pytest of their own and in this one."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

import multibinder
from multibinder.pytest_plugin import RunningBinder
from tests.support import clean_environment, is_alive, wait_until

pytest_plugins = ["pytester"]

#: It runs in a process of pytest that has the plugin by its entry point alone.
_CONFTEST = """
import sys
def pytest_configure(config):
    assert not [name for name in sys.modules if name.partition(".")[0] == "multibinder"]
"""
_TESTS = """
import os, pathlib, tempfile
import multibinder, pytest

def test_that_passes(multibinder_binder):
    assert os.environ["MULTIBINDER_SOCK"] == str(multibinder_binder.socket_path)
    multibinder.bind("127.0.0.1", 0, name="mine").close()

def test_that_fails(multibinder_binder, tmp_path):
    multibinder.bind("127.0.0.1", 0, owner="of-the-test-that-fails").close()
    pathlib.Path(os.environ["PIDS"]).write_text(str(multibinder_binder.pid))
    assert not multibinder_binder

@pytest.fixture
def long_directory(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 100)

def test_in_a_directory_with_a_long_name(long_directory, multibinder_binder):
    assert len(os.environ["MULTIBINDER_SOCK"]) < 60

def test_without_it():
    assert os.environ["MULTIBINDER_SOCK"] == "/of/the/user"
"""


def test_a_restart_and_a_crash_of_the_binder_keep_its_listeners(multibinder_binder: RunningBinder) -> None:
    pids = {multibinder_binder.pid}
    with multibinder.bind("127.0.0.1", 0, name="mine") as listener:
        where = listener.getsockname()
    for end in (multibinder_binder.restart, multibinder_binder.kill):
        end()
        pids.add(multibinder_binder.pid)
        with multibinder.bind("127.0.0.1", 0, name="mine") as listener:
            assert listener.getsockname() == where
    assert len(pids) == 3


def test_a_binder_that_was_stopped_is_not_there_until_it_is_started(multibinder_binder: RunningBinder) -> None:
    multibinder.bind("127.0.0.1", 0, name="mine").close()
    multibinder_binder.stop()
    with pytest.raises(multibinder.BinderUnavailable):
        multibinder.Client()
    multibinder_binder.start()
    with pytest.raises(RuntimeError, match="runs already"):
        multibinder_binder.start()
    with multibinder.Client() as client:
        assert client.list() == []


def test_a_run_gets_binders_that_end_with_their_tests_and_show_the_log_of_a_failure(
    pytester: pytest.Pytester, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeconftest(_CONFTEST)
    pytester.makepyfile(_TESTS)
    (run_dir / "tmp").mkdir()
    monkeypatch.setenv("MULTIBINDER_SOCK", "/of/the/user")
    monkeypatch.setenv("PIDS", f"{run_dir}/pids")
    monkeypatch.setenv("TMPDIR", f"{run_dir}/tmp")
    result = pytester.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*log of the binder*", "*of-the-test-that-fails*"])
    assert not is_alive(int((run_dir / "pids").read_text()))
    assert list((run_dir / "tmp").glob("mb-*")) == []


def test_a_binder_ends_also_when_the_process_of_the_tests_is_killed(run_dir: Path) -> None:
    code = (
        "import time, multibinder.pytest_plugin\n"
        "with multibinder.pytest_plugin.running_binder() as binder:\n"
        "    print(binder.pid, flush=True), time.sleep(60)\n"
    )
    environment = clean_environment({"TMPDIR": str(run_dir)})
    with subprocess.Popen([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, env=environment) as tests:
        assert tests.stdout is not None
        pid = int(tests.stdout.readline())
        tests.kill()
    wait_until(lambda: not is_alive(pid), "the binder has ended")


def test_a_binder_that_cannot_start_shows_its_log(run_dir: Path) -> None:
    (run_dir / "policy.toml").write_text("nonsense")
    with pytest.raises(RuntimeError, match=r"policy\.toml"):
        RunningBinder(run_dir)


def test_the_supervisor_of_the_tests_is_not_the_binders(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(run_dir / "notify"))
        supervisor.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(run_dir / "notify"))
        RunningBinder(run_dir).stop()
        with pytest.raises(BlockingIOError):
            supervisor.recv(1)
