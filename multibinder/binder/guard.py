"""The guard: keeps the binder's sockets where there is no systemd, and starts the binder again when it dies.

A small parent that does nothing else, so that it has nothing to crash on. It speaks systemd's protocol to the binder:
NOTIFY_SOCKET with FDSTORE, FDSTOREREMOVE and BARRIER one way, LISTEN_FDS the other (sd_notify(3), sd_listen_fds(3)).
It passes signals on, reaps whatever becomes its child, and may be PID 1.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence

import sdnotify

from multibinder.binder import events, ready
from multibinder.binder.keeper import GUARDED
from multibinder.binder.pidfile import PidFileError, remove_pidfile, write_pidfile
from multibinder.kernel.listen_fds import pass_listen_fds, take_listen_fds
from multibinder.wire import transport
from multibinder.wire.errors import RemoteProtocolError

#: From one start to the next, doubling while binders die before they are ready; clients wait for one that was.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.1, 5.0
_STORED = 65536
#: For the new guard's code to say that it can start.
_REHEARSAL_S = 30
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_SIGNALS = (*_PASSED_ON, signal.SIGUSR2, signal.SIGCHLD)
_NOTIFY = "notify"
_CHILD = "MULTIBINDER_GUARDED_PID"


class Guard:
    """``binder`` is the command to run; ``itself`` is the guard's own, executed on SIGUSR2 to upgrade it in place."""

    def __init__(self, binder: Sequence[str], itself: Sequence[str], pidfile: str | None) -> None:
        self._pidfile = pidfile
        self._binder = list(binder)
        self._itself = list(itself)
        self._kept: dict[str, int] = {}
        self._child = 0
        self._born = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._stopping = False
        self._leaving = False
        self._failed = False
        self._upstream = sdnotify.SystemdNotifier()
        if self._upstream.socket is not None:
            # A supervisor that never reads would otherwise stop us once its queue is full (unix(7), max_dgram_qlen).
            self._upstream.socket.setblocking(False)

    def run(self) -> int:
        """Until SIGTERM or SIGINT has ended the binder: its exit status."""
        while (status := self._live()) is None:
            try:
                os.execv(self._itself[0], self._itself)
            except OSError as error:
                # All is where the new guard would have found it, and so do we.
                events.error("guard-upgrade-failed", why=error.strerror, done="the running guard goes on")
        if self._pidfile is not None:
            remove_pidfile(self._pidfile)
        return status

    def _live(self) -> int | None:
        """One life: the binder's exit status, or None when everything is left for a new guard."""
        self._take_up()
        wakeup, signalled = socket.socketpair()
        with wakeup, signalled:
            for sock in (wakeup, signalled, self._socket):
                sock.setblocking(False)
            signal.set_wakeup_fd(signalled.fileno(), warn_on_full_buffer=False)
            for number in _SIGNALS:
                signal.signal(number, lambda *_: None)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            status = self._loop(wakeup)
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            signal.set_wakeup_fd(-1)
            if status is None:
                with contextlib.suppress(BlockingIOError):
                    for noted in wakeup.recv(64):
                        os.kill(os.getpid(), noted)  # noted, and not obeyed any more: it waits for the new guard
        if status is None:
            os.environ[_CHILD] = str(self._child)
            pass_listen_fds([(_NOTIFY, self._socket.detach()), *self._kept.items()], os.environ)
            self._kept.clear()
        return status

    def _loop(self, wakeup: socket.socket) -> int | None:
        self._reap()  # it may have died while nobody was told
        if not self._child:
            self._start()
        poll = select.poll()
        poll.register(wakeup, select.POLLIN)
        poll.register(self._socket, select.POLLIN)
        self._leaving = False
        while not self._leaving:
            due = None if self._child else max(0.0, self._born + self._pause_s - time.monotonic())
            poll.poll(None if due is None else due * 1000)
            self._listen()
            with contextlib.suppress(BlockingIOError):
                for number in wakeup.recv(64):
                    self._obey(number)
            status = self._reap()
            if self._stopping and not self._child:
                if self._failed:
                    return 1
                # Before it has its handlers, our signal ends it.
                return 0 if status in (None, -signal.SIGTERM, -signal.SIGINT) else status
            if status is not None and ready.DETACHED in os.environ:
                return status or 1  # it never was ready, and somebody waits to hear why
            if not self._child and time.monotonic() >= self._born + self._pause_s:
                self._start()
        return None

    def _take_up(self) -> None:
        """What an earlier version of this guard left when it became this one, if there is anything; else begin anew."""
        self._kept = {}
        for name, descriptor in take_listen_fds(os.environ):
            # A socket unit gives all its sockets one name.
            self._kept[name if name not in self._kept else f"{name}-{descriptor}"] = descriptor
        self._child = int(os.environ.pop(_CHILD, "0"))
        self._born = time.monotonic()
        if _NOTIFY in self._kept:
            self._socket = socket.socket(fileno=self._kept.pop(_NOTIFY))
        else:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._socket.bind("")  # autobind: an abstract name that the kernel chooses (unix(7))
        self._address = "@" + self._socket.getsockname()[1:].decode()

    def _start(self) -> None:
        self._born = time.monotonic()
        self._child = os.fork()
        if self._child:
            events.info("binder-started", pid=self._child, listeners=len(self._kept))
            return
        try:
            os.environ["NOTIFY_SOCKET"] = self._address
            os.environ[GUARDED] = "1"
            os.environ.setdefault("FDSTORE", str(_STORED))
            os.environ.pop(ready.DETACHED, None)  # who detached us hears it from us, when the pid file is there
            signal.set_wakeup_fd(-1)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD, signal.SIGUSR2])
            descriptors = list(self._kept.items())
            # pass_listen_fds() wants the numbers that it moves to closed, or to be ours.
            keep = {number for _, number in descriptors}
            for number in range(3, 64 + len(descriptors)):
                if number not in keep:
                    with contextlib.suppress(OSError):
                        os.close(number)
            pass_listen_fds(descriptors, os.environ)
            os.execv(self._binder[0], self._binder)
        except BaseException as error:
            os.write(2, f"multibinder: the guard cannot start the binder: {error}\n".encode())
        finally:
            os._exit(127)

    def _listen(self) -> None:
        """Take what the binder sent: store, forget, confirm; pass the rest on to whoever watches us."""
        while True:
            try:
                message, descriptors, uid = transport.receive_from(self._socket)
            except BlockingIOError:
                return
            except (OSError, RemoteProtocolError) as error:
                events.error("guard-cannot-receive", why=error)
                return
            if uid != os.geteuid():
                # Anybody can send to an abstract name; a store that listens to strangers gives our ports away.
                events.warning("guard-refused", uid=uid, why="a message to the guard from another user")
                transport.close_all(descriptors)
                continue
            fields = dict(line.partition("=")[::2] for line in message.decode(errors="replace").splitlines())
            name = fields.get("FDNAME", "")
            if fields.get("FDSTORE") == "1" and len(descriptors) == 1:
                if name in self._kept:
                    os.close(self._kept[name])
                self._kept[name] = descriptors.pop()
            elif fields.get("FDSTOREREMOVE") == "1" and name in self._kept:
                os.close(self._kept.pop(name))
            elif "BARRIER" not in fields and "FDSTORE" not in fields:
                self._upstream.notify(message.decode(errors="replace"))
                if fields.get("READY") == "1":
                    self._pause_s = _FIRST_PAUSE_S  # what dies after this was not dead at once
                    self._become_ready()
            # A barrier's descriptor is closed when everything before it has been done: now.
            transport.close_all(descriptors)

    def _become_ready(self) -> None:
        if self._pidfile is not None:
            try:
                write_pidfile(self._pidfile)
            except PidFileError as error:
                events.error("no-pidfile", why=error)
                if ready.DETACHED in os.environ:
                    os.write(2, f"multibinder: {error}\n".encode())
                    self._failed = True
                    self._obey(signal.SIGTERM)
                    return
        ready.tell_and_let_go()

    def _obey(self, number: int) -> None:
        if number == signal.SIGUSR2:
            self._upgrade()
        elif number in _PASSED_ON:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stopping, self._leaving = True, False
            if self._child:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._child, number)

    def _reap(self) -> int | None:
        """The binder's exit status if it has ended; other children are init's business, and we may be init."""
        ended = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            if pid == self._child:
                self._child = 0
                ended = os.waitstatus_to_exitcode(status)
                if not self._stopping:
                    self._listen()  # what it managed to send is as good as ever
                    self._pause_s = min(self._pause_s * 2, _LAST_PAUSE_S)
                    events.error("binder-died", pid=pid, status=ended, kept=len(self._kept), again_in_s=self._pause_s)

    def _upgrade(self) -> None:
        """Become the guard that is installed now, if that can start at all."""
        try:
            trial = subprocess.run(  # noqa: S603
                [*self._itself, "--rehearse"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_REHEARSAL_S,
                check=False,
            )
            refusal = (trial.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
            works = trial.returncode == 0
        except (OSError, subprocess.TimeoutExpired) as error:
            refusal, works = str(error), False
        if works:
            events.info("guard-upgrading", kept=len(self._kept))
            self._leaving = not self._stopping
        else:
            events.error("guard-upgrade-refused", why=refusal, done="the running guard goes on")
