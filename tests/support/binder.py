"""Run a real binder as a subprocess, and ask a running binder questions."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pytest

from multibinder import BinderUnavailable, Client, ListenerStatus, RemoteProtocolError
from tests.support.commands import PROGRAM, clean_environment
from tests.support.processes import descriptors
from tests.support.waiting import PATIENCE_S, wait_until


class Binder:
    """A real ``multibinder serve`` as a subprocess. A context manager: the process never outlives it.

    On leaving, a binder that still runs is stopped, and must exit with 0 and without a traceback in its log.
    """

    def __init__(
        self,
        directory: Path,
        *options: str,
        name: str = "mb",
        program: Sequence[str] = PROGRAM,
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        umask: int = -1,
        nofile: tuple[int, int] | None = None,
    ) -> None:
        self.socket_path = directory / f"{name}.sock"
        self.log_path = directory / f"{name}.log"
        self._notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notifications.setblocking(False)
        notify_path = directory / f"{name}.notify"
        self._notifications.bind(str(notify_path))
        limit = ["prlimit", f"--nofile={nofile[0]}:{nofile[1]}"] if nofile else []
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *limit,
                    *prefix,
                    *(command or [*program, "serve", "--socket", str(self.socket_path)]),
                    *options,
                ],
                env=clean_environment({"NOTIFY_SOCKET": str(notify_path), **(environment or {})}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                umask=umask,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return f"--- log of binder {self.pid}:\n{self.log_path.read_text(errors='replace')[-8000:]}"

    def notification(self) -> str | None:
        """Return the next sd_notify(3) message, or None if there is none."""
        try:
            return self._notifications.recv(4096).decode()
        except BlockingIOError:
            return None

    def wait_for_notification(self) -> str:
        def arrived() -> str | None:
            message = self.notification()
            if message is None and self.process.poll() is not None:
                pytest.fail(f"the binder ended with {self.process.returncode}\n{self.log()}")
            return message

        return wait_until(arrived, "a notification arrived", log=self.log)

    def wait_until_ready(self) -> Binder:
        while "READY=1" not in self.wait_for_notification().splitlines():
            pass
        return self

    def wait_for_log(self, text: str) -> str:
        """Wait until a line of the log contains ``text``, and return the first one that does."""

        def line() -> str | None:
            return next((line for line in self.log_path.read_text().splitlines() if text in line), None)

        return wait_until(line, f"the log says {text!r}", log=self.log)

    def descriptors(self) -> dict[int, str]:
        return descriptors(self.pid)

    def send_signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait until the process ends, and return its exit status."""
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the binder does not end\n{self.log()}")

    def stop(self) -> int:
        self.process.terminate()
        return self.wait()

    def suspend(self) -> None:
        """Stop the process at once (SIGSTOP), until ``resume`` continues it."""
        self.process.send_signal(signal.SIGSTOP)
        wait_until(
            lambda: " (stopped)" in Path(f"/proc/{self.pid}/status").read_text(), "the binder is stopped", log=self.log
        )

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Binder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.process.poll() is None:
                self.resume()
                self.process.terminate()
                try:
                    status = self.process.wait(PATIENCE_S)
                except subprocess.TimeoutExpired:
                    status = None
                if kind is None:
                    assert status == 0, f"the binder did not stop cleanly: {status}\n{self.log()}"
            sys.stderr.write(self.log())  # pytest shows it when the test fails
            if kind is None:
                assert "Traceback" not in self.log(), self.log()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._notifications.close()


def identities(path: str | os.PathLike[str]) -> list[tuple[object, ...]]:
    """Wait until a binder answers; return what no crash or upgrade of the binder may change about each listener."""

    def asked() -> list[list[ListenerStatus]] | None:
        with contextlib.suppress(BinderUnavailable, RemoteProtocolError), Client(path) as client:
            return [client.list()]
        return None

    [statuses] = wait_until(asked, f"a binder answers at {path}")
    return sorted((s.address, s.cookie, s.name, s.owners, s.backlog, s.created) for s in statuses)


def serving_pid(path: str | os.PathLike[str], *, not_: int = 0) -> int:
    """Wait until a binder other than ``not_`` answers at ``path``, and return its PID."""

    def answered() -> int | None:
        with contextlib.suppress(BinderUnavailable, RemoteProtocolError), Client(path) as client:
            pid = client.hello().pid
            return pid if pid != not_ else None
        return None

    return wait_until(answered, f"a binder answers at {path}")
