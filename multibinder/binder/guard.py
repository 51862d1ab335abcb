"""The guard: keep the binder's sockets on hosts without systemd, and start the binder again when it dies.

It is a small parent process that does little, so that little can fail. It uses systemd's protocols: the binder stores
descriptors by NOTIFY_SOCKET (sd_notify(3)), and gets them back by LISTEN_FDS (sd_listen_fds(3)). The guard passes
signals on, reaps every process that becomes its child, and may be PID 1.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence

import sdnotify

from multibinder.binder import events, ready
from multibinder.binder.descriptor_store import restored_store
from multibinder.binder.inherit import warn_not_open
from multibinder.binder.keeper import GUARDED
from multibinder.binder.pidfile import PidFileError, remove_pidfile, write_pidfile
from multibinder.binder.signals import SignalQueue
from multibinder.kernel.listen_fds import pass_listen_fds, take_listen_fds

#: The pause from one start to the next. It doubles while binders die before they are ready.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.1, 5.0
#: The number of descriptors that the guard promises to keep ($FDSTORE).
_KEPT_MAX = 65536
#: The rehearsal of the new guard must end within this time.
_REHEARSAL_S = 30
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_SIGNALS = (*_PASSED_ON, signal.SIGUSR2, signal.SIGCHLD)
#: Set for the next guard by an upgrade: the binder's PID.
_CHILD = "MULTIBINDER_GUARDED_PID"


def run(binder: Sequence[str], itself: Sequence[str], pidfile: str | None) -> int:
    """Run the guard until SIGTERM or SIGINT has ended the binder, and return the binder's exit status.

    ``binder`` is the command of the binder. ``itself`` is the guard's own, which SIGUSR2 executes to upgrade it.
    """
    while (status := Guard(binder, itself, pidfile).run()) is None:
        try:
            os.execv(itself[0], list(itself))
        except OSError as error:
            # All descriptors are passed on already. The next ``Guard`` takes them as the new program would.
            events.error("guard-upgrade-failed", why=error.strerror, done="the running guard goes on")
    if pidfile is not None:
        remove_pidfile(pidfile)
    return status


class Guard:
    """One life of the guard: take the descriptors of an earlier guard, serve, and pass them to the next one."""

    def __init__(self, binder: Sequence[str], itself: Sequence[str], pidfile: str | None) -> None:
        self._binder = list(binder)
        self._itself = list(itself)
        self._pidfile = pidfile
        self._store = restored_store(take_listen_fds(os.environ, warn_not_open))
        self._child_pid = int(os.environ.pop(_CHILD, "0"))
        self._started_at = time.monotonic()
        self._pause_s = _FIRST_PAUSE_S
        self._is_stopping = False
        self._is_upgrading = False
        self._has_failed = False
        self._upstream = sdnotify.SystemdNotifier()
        if self._upstream.socket is not None:
            # A supervisor that does not read must not block us when its queue is full (unix(7), max_dgram_qlen).
            self._upstream.socket.setblocking(False)

    def run(self) -> int | None:
        """Serve. Return the binder's exit status after a stop, or None after passing everything to a new guard."""
        signals = SignalQueue(_SIGNALS)
        status = self._supervise(signals)
        signals.close()
        if status is None:
            if self._upstream.socket is not None:
                self._upstream.socket.close()
            os.environ[_CHILD] = str(self._child_pid)
            pass_listen_fds(self._store.detach_all(), os.environ)
        return status

    def _supervise(self, signals: SignalQueue) -> int | None:
        self._reap()  # a binder that died during the upgrade of the guard has sent its SIGCHLD already
        if not self._child_pid:
            self._start()
        poll = select.poll()
        poll.register(signals, select.POLLIN)
        poll.register(self._store, select.POLLIN)
        while not self._is_upgrading:
            poll.poll(None if self._child_pid else max(0.0, self._start_again_at - time.monotonic()) * 1000)
            self._store.receive(self._pass_on)
            for number in signals.read():
                self._obey(number)
            status = self._reap()
            if self._is_stopping and not self._child_pid:
                if self._has_failed:
                    return 1
                # A binder that has no handlers yet is ended by the signal itself.
                return 0 if status in (None, -signal.SIGTERM, -signal.SIGINT) else status
            if status is not None and ready.DETACHED in os.environ:
                return status or 1  # the binder was never ready, and the process that detached us waits for the result
            if not self._child_pid and time.monotonic() >= self._start_again_at:
                self._start()
        return None

    @property
    def _start_again_at(self) -> float:
        return self._started_at + self._pause_s

    def _start(self) -> None:
        self._started_at = time.monotonic()
        self._child_pid = os.fork()
        if self._child_pid:
            events.info("binder-started", pid=self._child_pid, listeners=len(self._store))
            return
        try:
            self._become_binder()
        except BaseException as error:
            os.write(2, f"multibinder: the guard cannot start the binder: {error}\n".encode())
        finally:
            os._exit(127)

    def _become_binder(self) -> None:
        os.environ["NOTIFY_SOCKET"] = self._store.address
        os.environ[GUARDED] = "1"
        os.environ.setdefault("FDSTORE", str(_KEPT_MAX))
        # The guard reports to the process that detached it, when the pid file is written.
        os.environ.pop(ready.DETACHED, None)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD, signal.SIGUSR2])
        descriptors = self._store.descriptors()
        # All others are close-on-exec, but pass_listen_fds() needs their numbers now.
        kept = {number for _, number in descriptors}
        for number in range(3, 64 + len(descriptors)):
            if number not in kept:
                with contextlib.suppress(OSError):
                    os.close(number)
        pass_listen_fds(descriptors, os.environ)
        os.execv(self._binder[0], self._binder)

    def _pass_on(self, fields: dict[str, str], message: str) -> None:
        """Pass a message of the binder on to our own supervisor."""
        self._upstream.notify(message)
        if fields.get("READY") == "1":
            self._pause_s = _FIRST_PAUSE_S  # a binder that was ready may be started again at once
            self._report_ready()

    def _report_ready(self) -> None:
        if self._pidfile is not None:
            try:
                write_pidfile(self._pidfile)
            except PidFileError as error:
                events.error("no-pidfile", why=error)
                if ready.DETACHED in os.environ:
                    os.write(2, f"multibinder: {error}\n".encode())
                    self._has_failed = True
                    self._obey(signal.SIGTERM)
                    return
        ready.report_ready()

    def _obey(self, number: int) -> None:
        if number == signal.SIGUSR2:
            self._upgrade()
        elif number in _PASSED_ON:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._is_stopping, self._is_upgrading = True, False
            if self._child_pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._child_pid, number)

    def _reap(self) -> int | None:
        """Reap all children that have ended, and return the binder's exit status if it is one of them.

        Other children were orphaned processes: their new parent is PID 1, which may be us.
        """
        ended = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            if pid == self._child_pid:
                self._child_pid = 0
                ended = os.waitstatus_to_exitcode(status)
                if not self._is_stopping:
                    self._store.receive(self._pass_on)  # messages that the binder sent before it died
                    self._pause_s = min(self._pause_s * 2, _LAST_PAUSE_S)
                    events.error("binder-died", pid=pid, status=ended, kept=len(self._store), again_in_s=self._pause_s)

    def _upgrade(self) -> None:
        """Rehearse the installed guard, and begin the upgrade to it if the rehearsal succeeds."""
        try:
            rehearsal = subprocess.run(  # noqa: S603
                [*self._itself, "--rehearse"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_REHEARSAL_S,
                check=False,
            )
            refusal = (rehearsal.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
            succeeded = rehearsal.returncode == 0
        except (OSError, subprocess.TimeoutExpired) as error:
            refusal, succeeded = str(error), False
        if succeeded:
            events.info("guard-upgrading", kept=len(self._store))
            self._is_upgrading = not self._is_stopping
        else:
            events.error("guard-upgrade-refused", why=refusal, done="the running guard goes on")
