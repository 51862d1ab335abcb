"""The guard: keep the binder's sockets on hosts without systemd, and start the binder again when it dies.

It is a small parent process that does little, so that little can fail. It uses systemd's protocols: the binder stores
descriptors by NOTIFY_SOCKET (sd_notify(3)), and gets them back by LISTEN_FDS (sd_listen_fds(3)). The guard passes
signals on, reaps every process that becomes its child, and may be PID 1.

Whatever fails is logged and tried again. It ends only after its binder has, on SIGTERM or SIGINT; or by an upgrade.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Sequence

from multibinder.binder import events, guard_child, ready
from multibinder.binder.descriptor_store import DescriptorStore, promised_room, raise_limit
from multibinder.binder.failures import callback_failed
from multibinder.binder.guard_rehearsal import GuardRehearsal, Upgrade
from multibinder.binder.guard_socket import LOOK_EVERY_S, GuardSocket, sorted_by_purpose
from multibinder.binder.inherit import warn_not_open
from multibinder.binder.keeper import ANSWERS, GUARDED
from multibinder.binder.loop import Loop
from multibinder.binder.patience import patiently
from multibinder.binder.pidfile import PidFileError, remove_pidfile, write_pidfile
from multibinder.binder.signals import SignalQueue
from multibinder.binder.upstream import Upstream
from multibinder.kernel import handover, line_writer
from multibinder.kernel.listen_fds import take_listen_fds
from multibinder.wire import transport

#: The pause from one start to the next. It doubles while binders die before they are ready.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.1, 5.0
#: The most messages that are processed in one turn of the loop, and of a binder that has died.
_MESSAGES_A_TURN, _LAST_MESSAGES = 64, 4096
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_SIGNALS = (*_PASSED_ON, signal.SIGUSR2, signal.SIGCHLD)
#: Set for the next guard by an upgrade: the binder's PID.
_CHILD = "MULTIBINDER_GUARDED_PID"


def run(binder: Sequence[str], upgrade: Upgrade, pidfile: str | None, socket_path: str) -> int:
    """Run the guard until SIGTERM or SIGINT has ended the binder, and return the binder's exit status.

    ``binder`` is the binder's command. The guard's socket is beside the control socket, ``socket_path``.
    """
    raise_limit()
    descriptors = take_listen_fds(os.environ, warn_not_open)
    child = guard_child.of_before(os.environ.pop(_CHILD, ""))
    while True:
        guard = Guard(binder, upgrade, pidfile, socket_path, descriptors, child)
        if (status := guard.run()) is not None:
            break
        descriptors, child = guard.detach_all(), guard.detach_child()
        environment = {**os.environ, **upgrade.variables, _CHILD: str(child)}
        descriptors, error = handover.execute(upgrade.executed, descriptors, environment)
        events.error("guard-upgrade-failed", why=error.strerror, done="the running guard goes on")
    if pidfile is not None:
        remove_pidfile(pidfile)
    return status


class Guard:
    """One life of the guard: take the descriptors of an earlier guard, serve, and pass them to the next one.

    ``descriptors`` are (name, number), and belong to the guard now. ``child`` is the PID of the running binder, or 0.
    """

    def __init__(
        self,
        binder: Sequence[str],
        upgrade: Upgrade,
        pidfile: str | None,
        socket_path: str,
        descriptors: Sequence[tuple[str, int]],
        child: int,
    ) -> None:
        self._loop = patiently(Loop, bool(descriptors))
        self._binder, self._next, self._pidfile = list(binder), upgrade, pidfile
        sockets, stored = sorted_by_purpose(descriptors)
        self._store = DescriptorStore(stored)
        self._socket = GuardSocket(f"{socket_path}.guard", sockets)
        self._child = guard_child.BinderProcess(child) if child else None
        self._upstream = Upstream(self._loop)
        self._rehearsal: GuardRehearsal | None = None
        self._started_at = time.monotonic()
        self._pause_s = _FIRST_PAUSE_S
        self._is_start_due = self._is_stopping = self._is_upgrading = self._has_failed = False
        self._said = ""
        self._status: int | None = None

    def detach_child(self) -> int:
        """Return the PID of the running binder, or 0."""
        return 0 if self._child is None else self._child.detach()

    def run(self) -> int | None:
        """Serve. Return the binder's exit status after a stop, or None when a new guard is to take over."""
        signals = patiently(lambda: SignalQueue(_SIGNALS), len(self._store) > 0)
        self._loop.watch_always(signals.fileno(), lambda: self._obey_all(signals.read()))
        events.catch_up_by(self._loop.call_later)
        if not self._socket.sockets():
            with contextlib.suppress(OSError):  # it is tried again before the next start
                self._socket.renew()
        self._watch_sockets()
        self._loop.call_every(LOOK_EVERY_S, self._watch_sockets)
        for name in self._next.variables:
            os.environ.pop(name, None)
        self._reap()  # a binder that died during the upgrade of the guard has sent its SIGCHLD already
        if self._child is None:
            self._start()
        self._loop.run(lambda: None)
        signals.close()
        self._loop.close()
        self._upstream.close()
        if not self._is_upgrading:
            self._socket.close()
            return self._status or 0
        return None

    def detach_all(self) -> list[tuple[str, int]]:
        """Return every descriptor that the next guard needs, with its name. The caller owns them."""
        return sorted([*self._socket.detach(), *self._store.detach_all()], key=lambda named: named[1])

    def _watch_sockets(self, retired: Sequence[socket.socket] = ()) -> None:
        """Receive on all sockets, also on a new one in place of one whose file was removed."""
        for sock in (*retired, *self._socket.look()):
            self._receive(sock, _LAST_MESSAGES)
            self._loop.unwatch(sock)
            sock.close()
        for sock in self._socket.sockets():
            self._loop.unwatch(sock)
            self._loop.watch_always(sock, lambda sock=sock: self._receive(sock, _MESSAGES_A_TURN))  # type: ignore[misc]

    def _receive(self, sock: socket.socket, most: int) -> None:
        """Process messages that have arrived, ``most`` at the most."""
        for _ in range(most):
            try:
                datagram = transport.receive_datagram(sock)
            except BlockingIOError:
                return
            try:
                self._store.process(datagram, self._pass_on)
            except Exception as error:  # a bug must not keep the guard from the next message
                callback_failed(self._store.process, error)

    def _receive_all(self) -> None:
        """Process what a binder sent before it ended."""
        for sock in self._socket.sockets():
            with contextlib.suppress(OSError):
                self._receive(sock, _LAST_MESSAGES)

    def _start(self) -> None:
        """Start a binder. If that fails, say so and try again later."""
        if self._child is not None or self._is_stopping:
            return
        self._started_at = time.monotonic()
        try:
            self._renew_socket()
            room = str(promised_room(os.environ.get("FDSTORE", "")))
            environment = {"NOTIFY_SOCKET": self._socket.address, GUARDED: ANSWERS, "FDSTORE": room}
            self._child = guard_child.start(self._binder, self._store.descriptors(), environment)
        except (OSError, MemoryError) as error:
            self._pause_s = min(self._pause_s * 2, _LAST_PAUSE_S)
            why = getattr(error, "strerror", None) or "no memory"
            if why != self._said:
                events.error("binder-not-started", why=why, kept=len(self._store), again_in_s=self._pause_s)
                self._said = why
            self._start_later()
        else:
            self._said = ""
            events.info("binder-started", pid=self._child.pid, listeners=len(self._store))

    def _renew_socket(self) -> None:
        """See that the next binder can reach the guard. No binder runs that is connected to an older socket."""
        self._socket.renew()
        self._receive_all()
        self._watch_sockets(self._socket.retire_older())

    def _start_later(self) -> None:
        def start() -> None:
            self._is_start_due = False
            self._start()

        if not self._is_start_due:
            self._is_start_due = True
            self._loop.call_later(max(0.0, self._started_at + self._pause_s - time.monotonic()), start)

    def _pass_on(self, fields: dict[str, str], message: str) -> None:
        """Pass a message of the binder on to our own supervisor."""
        self._upstream.send(fields, message)
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
                    line_writer.write_now(2, f"multibinder: {error}\n".encode())
                    self._has_failed = True
                    self._obey(signal.SIGTERM)
                    return
        ready.report_ready()

    def _obey_all(self, signals: bytes) -> None:
        for number in signals:
            try:
                self._obey(number)
            except Exception as error:  # the other signals must not be lost
                callback_failed(self._obey, error)
        self._reap()

    def _obey(self, number: int) -> None:
        if number == signal.SIGUSR2:
            self._upgrade()
        elif number in _PASSED_ON:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._is_stopping, self._is_upgrading = True, False
            if self._child is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._child.pid, number)
            elif self._is_stopping:
                self._end(0)

    def _reap(self) -> None:
        """Reap all children that have ended.

        Those that we did not start were orphaned processes: their new parent is PID 1, which may be us.
        """
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                if self._child is not None:
                    self._note_end_of_binder(None)  # reaped by nobody that we know of
                return
            if pid == 0:
                return
            if self._child is not None and pid == self._child.pid:
                self._note_end_of_binder(os.waitstatus_to_exitcode(status))
            elif self._rehearsal is not None:
                self._rehearsal.note_end(pid)

    def _note_end_of_binder(self, status: int | None) -> None:
        assert self._child is not None  # noqa: S101
        pid, why = self._child.pid, self._child.why_not_executed()
        self._child = None
        self._receive_all()
        if self._is_stopping:
            # A binder that has no handlers yet is ended by the signal itself.
            self._end(0 if status in (None, -signal.SIGTERM, -signal.SIGINT) else status or 0)
            return
        self._pause_s = min(self._pause_s * 2, _LAST_PAUSE_S)
        reason = {"why": why} if why else {}
        shown = "unknown" if status is None else status
        events.error("binder-died", pid=pid, status=shown, kept=len(self._store), again_in_s=self._pause_s, **reason)
        if ready.DETACHED in os.environ:
            # The binder was never ready, and the process that detached us waits for the result.
            self._end(status or 1)
        else:
            self._start_later()

    def _end(self, status: int) -> None:
        if self._rehearsal is not None:
            self._rehearsal.stop()
        self._status = 1 if self._has_failed else status
        self._loop.stop()

    def _upgrade(self) -> None:
        """Rehearse the installed guard, and begin the upgrade to it if the rehearsal succeeds. One at a time."""
        if self._rehearsal is not None or self._is_upgrading:
            return
        why = self._store.refusal_to_pass_on(len(self._socket.sockets()))
        if why is None:
            try:
                self._rehearsal = GuardRehearsal(self._loop, self._next, self._finish_rehearsal)
            except OSError as error:
                why = f"its rehearsal cannot be started: {error.strerror}"
        if why is not None:
            self._finish_rehearsal(why)

    def _finish_rehearsal(self, why: str | None) -> None:
        rehearsal, self._rehearsal = self._rehearsal, None
        if why is not None:
            events.error("guard-upgrade-refused", why=why, done="the running guard goes on")
        elif not self._is_stopping:
            events.info("guard-upgrading", kept=len(self._store))
            self._is_upgrading = True
            self._loop.stop()
            if rehearsal is not None and rehearsal.is_older:
                # It would keep a socket that it never reads, with descriptors in its queue.
                self._receive_all()
                self._socket.close_those_with_file()
