"""Start a second server beside the one that serves, and make it the main process of the unit.

systemd runs this as ``ExecReload=`` of the unit, so that the new server has the unit's control group, limits, user,
file system and environment, with all variables of its command line expanded. systemd becomes the parent of the new
server when this process ends. If the new server fails, it is ended: nothing has changed then.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

import msgspec

from multibinder.kernel import process
from multibinder.launch.units.errors import TakeoverError
from multibinder.wire.instance_summary import FILE_NAME, InstanceSummary

_LOOK_S = 0.05
_BARRIER_S = 10.0
#: A server that was told to end has this time before SIGKILL.
_END_S = 5.0


def start(timeout_s: float, ready: str, command: Sequence[str]) -> None:
    """Start ``command``, and make it the main process when it is ready. ``ready`` is a name of ``_check``.

    Raises TakeoverError if it is not ready within ``timeout_s``, or this process gets SIGTERM; it is ended then.
    """
    notify = os.environ.get("NOTIFY_SOCKET")
    if not notify:
        raise TakeoverError("systemd passes no NOTIFY_SOCKET, by which it is told of the new server")
    environment = {name: value for name, value in os.environ.items() if name != "MAINPID"}
    signal.signal(signal.SIGTERM, _stop)  # systemd's TimeoutStartSec= has passed
    server = _spawn(command, environment)
    try:
        _wait_until_ready(server, _check(ready, server), time.monotonic() + timeout_s)
        _tell(notify, server)
    except BaseException:
        _end(server)
        raise


def _spawn(command: Sequence[str], environment: dict[str, str]) -> int:
    """Start a process in a session of its own, as systemd does, and with systemd as its parent. Return its PID.

    systemd sees the end of a main process at once only if it is its parent when it is told of it.
    """
    reading, writing = os.pipe()
    between = os.fork()
    if not between:
        try:
            server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, env=environment)  # noqa: S603
            os.write(writing, b"%d" % server.pid)
        except OSError as error:
            os.write(writing, (error.strerror or str(error)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read().decode(errors="replace")
    os.waitpid(between, 0)
    if not answer.isdecimal():
        raise TakeoverError(f"cannot execute {command[0]}: {answer.lower() or 'it could not be forked'}")
    return int(answer)


def _stop(number: int, frame: object) -> NoReturn:
    raise TakeoverError("it is not ready in time")


def _wait_until_ready(server: int, is_ready: Callable[[], bool], deadline: float) -> None:
    while True:
        # Ready is what was seen, and alive what is now: so this order.
        was_ready = is_ready()
        if not process.is_alive(server):
            raise TakeoverError("it has ended; its messages are above")
        if was_ready:
            return
        if time.monotonic() > deadline:
            raise TakeoverError("it is not ready in time")
        time.sleep(_LOOK_S)


def _check(ready: str, pid: int) -> Callable[[], bool]:
    kind, _, value = ready.partition("=")
    if kind == "instance":
        return lambda: _has_workers(value, pid)
    main_pid = int(os.environ.get("MAINPID") or 0)
    return lambda: _shares_listeners(pid, main_pid)


def _has_workers(directory: str, pid: int) -> bool:
    """Return whether a worker of this master has come up, as the summary of its instance says."""
    try:
        with open(os.path.join(directory, FILE_NAME), "rb") as file:
            summary = msgspec.json.decode(file.read(), type=InstanceSummary)
    except (OSError, msgspec.DecodeError):
        return False
    return summary.master is not None and summary.master.pid == pid and bool(summary.workers)


def _shares_listeners(pid: int, former: int) -> bool:
    """Return whether a worker of the new master has a listener of the former one: it is bound then, and accepts."""
    name = process.name_of(pid)
    if name != process.name_of(former):
        return False
    workers = [child for child in process.children_of(pid) if process.name_of(child) == name]
    return any(_sockets(worker) & _sockets(former) for worker in workers)


def _sockets(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
                if target.startswith("socket:"):
                    found.add(target)
    return found


def _tell(notify: str, pid: int) -> None:
    """Make ``pid`` the main process for systemd, and wait until it has taken note (sd_notify(3), BARRIER=1)."""
    address = "\0" + notify[1:] if notify.startswith("@") else notify
    reading, writing = os.pipe()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            sock.send(f"MAINPID={pid}".encode())
            socket.send_fds(sock, [b"BARRIER=1"], [writing])
        os.close(writing)
        writing = -1
        if not select.select([reading], [], [], _BARRIER_S)[0]:
            raise TakeoverError("systemd does not take note of the new main process")
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


def _end(server: int) -> None:
    """End a server that is not to stay, with all of its processes."""
    below = {pid: process.start_ticks_of(pid) for pid in process.with_descendants(server)}
    with contextlib.suppress(ProcessLookupError):
        os.kill(server, signal.SIGTERM)
    deadline = time.monotonic() + _END_S
    while process.is_alive(server) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    for pid, ticks in below.items():
        if process.is_alive(pid) and process.start_ticks_of(pid) == ticks:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
