"""A real binder for one test: the value of the fixture ``multibinder_binder``.

    def test_my_server_survives_a_restart_of_the_binder(multibinder_binder):
        listener = multibinder.bind("127.0.0.1", 0, name="mine")
        multibinder_binder.kill()
        assert multibinder.bind("127.0.0.1", 0, name="mine").getsockname() == listener.getsockname()

pytest loads the fixture from the package ``multibinder_pytest``. A type annotation of it is
``multibinder.pytest_plugin.RunningBinder``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from multibinder.wire.arguments import SOCKET_VARIABLE
from multibinder.wire.client import Client
from multibinder.wire.errors import BinderUnavailable, RemoteProtocolError

#: A start takes a second, and some more on a machine whose other cores run other tests.
_PATIENCE_S = 30.0
_LOOK_EVERY_S = 0.01
#: Variables that tell a service how its supervisor started the process of the tests.
_NOT_FOR_THE_BINDER = (
    "FDSTORE",
    "JOURNAL_STREAM",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
)
#: Executes the rest of the command line, and has the kernel send SIGTERM when the process of the tests ends in a way
#: that runs no fixture to its end: prctl(2), PR_SET_PDEATHSIG. It survives execve(2).
_ENDS_WITH_ITS_PARENT = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {signal.SIGTERM:d})
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class RunningBinder:
    """``multibinder serve --guard`` with a control socket at ``socket_path``. It runs when the constructor returns.

    The methods that end or start it return when it answers again, or has ended. RuntimeError, with its log, if it
    does not within 30 s.
    """

    def __init__(self, directory: Path) -> None:
        self.socket_path = directory / "control.sock"
        self._log_path = directory / "log"
        self._log_path.touch()
        # Without rules: the binder's own user may ask for everything. The policy of the host must not decide here.
        self._policy_path = directory / "policy.toml"
        self._policy_path.touch(mode=0o600)
        self._guard: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def pid(self) -> int:
        """Return the PID of the binder. Raises BinderUnavailable while none runs."""
        with Client(self.socket_path) as client:
            return client.hello().pid

    def log(self) -> str:
        """Return all that the binder, and the guard that starts it, have logged."""
        return self._log_path.read_text(encoding="utf-8", errors="replace")

    def restart(self) -> None:
        """End the binder as a service manager does, by SIGTERM, and wait for the next one, which has all listeners.

        Clients that are connected are disconnected. A ``multibinder.Client().upgrade()`` keeps them.
        """
        self._end_and_wait_for_the_next(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the binder by SIGKILL, as a crash would, and wait for the next one, which has all listeners."""
        self._end_and_wait_for_the_next(signal.SIGKILL)

    def stop(self) -> None:
        """End the binder and its guard. A listener lives on as long as a process has it open. Does nothing twice."""
        guard, self._guard = self._guard, None
        if guard is None:
            return
        guard.terminate()
        try:
            status = guard.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()
            raise self._failure("the binder does not end after SIGTERM") from None
        if status != 0:
            raise self._failure(f"the binder ended with status {status}")

    def start(self) -> None:
        """Start a binder after ``stop``. It begins without listeners, but for those that a process still has open."""
        if self._guard is not None:
            raise RuntimeError("the binder runs already")
        serve = ["-P", "-m", "multibinder", "serve", "--guard", "--socket", str(self.socket_path)]
        serve += ["--policy", str(self._policy_path)]
        with self._log_path.open("ab") as log:
            self._guard = subprocess.Popen(  # noqa: S603  # the interpreter of the tests, and words from above
                [sys.executable, "-c", _ENDS_WITH_ITS_PARENT, str(os.getpid()), sys.executable, *serve],
                env=_environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._wait_for_a_binder(lambda pid: True, logged=len(self.log()))
        except BaseException:
            with contextlib.suppress(RuntimeError):
                self.stop()
            raise

    def _end_and_wait_for_the_next(self, number: signal.Signals) -> None:
        before = self.pid
        os.kill(before, number)
        self._wait_for_a_binder(lambda pid: pid != before)

    def _wait_for_a_binder(self, is_right: Callable[[int], bool], logged: int | None = None) -> None:
        """Wait until a binder answers whose PID ``is_right``.

        The guard starts a binder that has died again and again. ``logged`` is the length of the log before a first
        start, at which one death is a failure.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            with contextlib.suppress(BinderUnavailable, RemoteProtocolError):
                if is_right(self.pid):
                    return
            died = logged is not None and "event=binder-died" in self.log()[logged:]
            if died or self._guard is None or self._guard.poll() is not None:
                raise self._failure("the binder ended")
            if time.monotonic() > deadline:
                raise self._failure(f"no binder answers within {_PATIENCE_S:g} s")
            time.sleep(_LOOK_EVERY_S)

    def _failure(self, why: str) -> RuntimeError:
        return RuntimeError(f"{why}; its log:\n{self.log()}")


@contextlib.contextmanager
def running_binder() -> Iterator[RunningBinder]:
    """Run a binder in a temporary directory, with MULTIBINDER_SOCK set to its control socket, until the block ends.

    RuntimeError at the end if it did not exit with 0.
    """
    # Not below pytest's tmp_path: the path of a Unix socket has at most 107 bytes (unix(7)), and that may be longer.
    directory = Path(tempfile.mkdtemp(prefix="mb-", dir=_SHORT if len(tempfile.gettempdir()) > _LONG else None))
    before = os.environ.get(SOCKET_VARIABLE)
    try:
        binder = RunningBinder(directory)
        try:
            os.environ[SOCKET_VARIABLE] = str(binder.socket_path)
            yield binder
        finally:
            if before is None:
                os.environ.pop(SOCKET_VARIABLE, None)
            else:
                os.environ[SOCKET_VARIABLE] = before
            binder.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


#: A temporary directory whose name is longer than this leaves no room for the guard's socket, ``control.sock.guard``.
_LONG = 70
_SHORT = "/tmp"  # noqa: S108  # mkdtemp() makes a directory of mode 0700 in it


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in inherited.items() if name not in _NOT_FOR_THE_BINDER}
