"""The former server: the one that serves before another one takes its place on the same sockets.

It is told to finish in the way that leaves the shared sockets alone. A server that ends in its usual way may do what
was right when it was the only one: remove the path of a Unix socket, or a pidfile that is the new server's by now.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Collection, Iterable, Iterator

import msgspec

from multibinder.kernel import process

#: nginx's master unlinks its Unix paths and its pidfile at its end (ngx_master_process_exit()), unless it is killed. So
#: only its workers are told to finish. Meanwhile the master is stopped, because it would start others. (SIGWINCH, which
#: is meant for that, has no effect with 'daemon off': ngx_signal_handler().)
_NGINX = "nginx"
#: How each program finishes its connections: the signal for its topmost process. Any other one gets SIGTERM.
_SIGNALS = {"haproxy": signal.SIGUSR1, "php-fpm": signal.SIGQUIT, "uwsgi": signal.SIGHUP}
_LOOK_S = 0.05


class Former(msgspec.Struct, frozen=True):
    """The topmost process of a server, as HAProxy's or nginx's master. ``start_ticks`` is that of proc_pid_stat(5).

    ``program`` is the name of the program (comm).
    """

    pid: int
    start_ticks: int
    program: str

    def __str__(self) -> str:
        return f"{self.program} (pid {self.pid})"

    @property
    def ends_in_steps(self) -> bool:
        """Whether ``end`` has to wait for the end itself; any other server ends by itself, once it was told."""
        return self.program == _NGINX

    def is_alive(self) -> bool:
        """Return whether this very process lives."""
        stat = process.stat_or_none(self.pid)
        return stat is not None and not stat.has_ended and stat.start_ticks == self.start_ticks


def formers_of(holders: Iterable[int]) -> list[Former]:
    """Return the servers that these processes, which hold the listeners, belong to: of each, its topmost process.

    That is the topmost one of HAProxy, nginx and the like, whose masters may have no listener open, and of any other
    server the topmost holder: its parent may be a supervisor, written in the same language. Left out are processes that
    have ended, and systemd, which holds the listeners of its socket units.
    """
    holders = {pid for pid in holders if pid != 1 or _is_known(process.name_of(pid))}
    found: dict[int, Former] = {}
    for pid in holders:
        top = _topmost(pid, holders)
        stat = process.stat_or_none(top)
        if stat is not None and not stat.has_ended:
            found[top] = Former(top, stat.start_ticks, process.name_of(top))
    return list(found.values())


def end(former: Former, timeout_s: float | None = None) -> bool:
    """Let a server finish its connections and end. Return whether it has ended within ``timeout_s``; None is for ever.

    It must not be asked before another server accepts on its sockets. One that has ended already is right. Raises
    PermissionError if it is another user's.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with _opened(former) as pidfd:
        if pidfd is None:
            return True
        if former.program == _NGINX:
            return _end_nginx(former, pidfd, deadline)
        # Once: a second SIGUSR1 can kill a worker of HAProxy that is just ending.
        signal.pidfd_send_signal(pidfd, _signal_for(former))
        return _has_ended(pidfd, deadline)


def _end_nginx(former: Former, master: int, deadline: float | None) -> bool:
    signal.pidfd_send_signal(master, signal.SIGSTOP)
    for worker in process.children_of(former.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGQUIT)  # it stays its master's child until that waits for it, which is stopped
    while any(map(process.is_alive, process.children_of(former.pid))):
        if deadline is not None and time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    signal.pidfd_send_signal(master, signal.SIGKILL)
    return _has_ended(master, deadline)


def _signal_for(former: Former) -> signal.Signals:
    return next((number for name, number in _SIGNALS.items() if former.program.startswith(name)), signal.SIGTERM)


def _topmost(pid: int, holders: Collection[int]) -> int:
    while (parent := process.parent_of(pid)) > 0 and (parent in holders or _is_master_of(parent, pid)):
        pid = parent
    return pid


def _is_master_of(parent: int, pid: int) -> bool:
    """Return whether ``parent`` is the master of a known program: both execute the same file under the same name."""
    name = process.name_of(pid)
    if process.name_of(parent) != name or not _is_known(name):
        return False
    try:
        first, second = (os.readlink(f"/proc/{each}/exe").removesuffix(" (deleted)") for each in (pid, parent))
    except OSError:
        return True  # not shown to our user: then the name decides
    return first == second


def _is_known(program: str) -> bool:
    return program.startswith((*_SIGNALS, _NGINX))


@contextlib.contextmanager
def _opened(former: Former) -> Iterator[int | None]:
    """Yield a pidfd of the very process; None if it has ended."""
    try:
        pidfd = os.pidfd_open(former.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield pidfd if former.is_alive() else None
    finally:
        os.close(pidfd)


def _has_ended(pidfd: int, deadline: float | None) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    left_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
    return bool(poll.poll(left_ms))
