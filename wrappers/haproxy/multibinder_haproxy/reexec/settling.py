"""Watch a load from another process, and become ``multibinder-haproxy settle`` at its end.

Once a worker answers, this process itself notes that the configuration is good: ``settle`` imports much, so it comes
a moment later, and HAProxy may have been killed by then.
"""

import contextlib
import os
import select
import signal
import socket
import time

from multibinder_haproxy.reexec import environment, files, messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

LOADED_FILE, LAST_GOOD_FILE, CONDEMNED_FILE = "loaded.json", "last-good.json", "condemned.json"
#: After this time ``settle`` looks closer. At a start nothing else can happen than that HAProxy's master ends.
_PATIENCE_S, _PATIENCE_WITH_A_START_S = 1.0, 10.0
_PAUSE_S, _ASK_S = 0.03, 1.0


def start(record: "dict[str, Any]", lock: int) -> None:
    """Start the process that watches the load. It inherits ``lock``, and the instance stays locked.

    The new process has a session of its own, and none of HAProxy's descriptors and variables. A failure is logged: the
    load itself goes on.
    """
    # Opened here: after this process has become HAProxy and has ended, its PID may be another process's.
    pidfd = os.pidfd_open(os.getpid())
    child = os.fork()
    if child:
        os.close(pidfd)
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            _watch(record, lock, pidfd)
    except Exception as error:
        messages.write(record["name"], "error", f"this load is not watched: {type(error).__name__}: {error}")
    finally:
        os._exit(0)


def state_directory(record: "dict[str, Any]") -> str:
    """Return the directory of the last good configuration."""
    state = record.get("state_directory")
    return os.path.join(state, record["name"]) if state else str(record["directory"])


def promote(record: "dict[str, Any]", generation: int) -> None:
    """Note that a worker came up with the configuration of a load. Raises OSError."""
    path = os.path.join(record["directory"], LOADED_FILE)
    loaded = files.read_record(path)
    if loaded is None or loaded["generation"] != generation:
        return  # a later load has begun
    files.write_record(path, {**loaded, "came_up": True})
    if loaded.get("fallback") is None:
        directory = state_directory(record)
        if os.path.isdir(directory):  # settle makes it
            files.write_record(os.path.join(directory, LAST_GOOD_FILE), {"config": loaded["config"], "at": time.time()})
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, CONDEMNED_FILE))


def _watch(record: "dict[str, Any]", lock: int, pidfd: int) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    start = 3
    for number in sorted([lock, pidfd]):
        os.set_inheritable(number, True)
        os.closerange(start, number)
        start = number + 1
    os.closerange(start, max([64, start, record.get("lock_descriptor", 0), *record["fds"].values()]) + 1)
    with contextlib.suppress(OSError, KeyError, ValueError):
        loaded = files.read_record(os.path.join(record["directory"], LOADED_FILE)) or {}
        patience_s = _PATIENCE_S if loaded["old_workers"] else _PATIENCE_WITH_A_START_S
        if _await_worker(_master_socket(record["arguments"]), pidfd, loaded["old_workers"], patience_s):
            promote(record, loaded["generation"])
    runtime, name = os.path.split(record["directory"])
    program = record.get("command_path") or record["wrapper"]
    arguments = ["settle", "--runtime-dir", runtime, "--lock-fd", str(lock), "--master-fd", str(pidfd), name]
    os.execve(program, [program, *arguments], environment.operators(os.environ))


def _await_worker(path: str, pidfd: int, old: "Collection[int]", patience_s: float) -> bool:
    """Return whether a worker that is none of the ``old`` ones answers, before HAProxy's master ends."""
    deadline = time.monotonic() + patience_s
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    while time.monotonic() < deadline and not ended.poll(1000 * _PAUSE_S):
        rows = [line.split() for line in _ask(path, "show proc").splitlines()]
        new = [row[0] for row in rows if row[1:2] == ["worker"] and row[0].isdigit() and int(row[0]) not in old]
        # While HAProxy 3 still loads, its new worker is in the list, but does not answer yet.
        if new and all(f"\nPid: {pid}\n" in _ask(path, f"@!{pid} show info") for pid in new):
            return True
    return False


def _ask(path: str, command: str) -> str:
    """Return the answer of HAProxy's master; empty without one."""
    answer = b""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as cli:
        cli.settimeout(_ASK_S)
        cli.connect(path)
        cli.sendall(command.encode() + b"\n")
        cli.shutdown(socket.SHUT_WR)
        while chunk := cli.recv(65536):
            answer += chunk
    return answer.decode(errors="replace")


def _master_socket(arguments: "list[str]") -> str:
    """Return the path of the master CLI, as arguments.master_socket() does."""
    address = arguments[arguments.index("-S") + 1] if "-S" in arguments else ""
    return address.partition(",")[0].removeprefix("unix@")
