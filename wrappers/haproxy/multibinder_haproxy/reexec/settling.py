"""Start ``multibinder-haproxy settle`` for a load, in another process."""

import os
import signal

from multibinder_haproxy.reexec import environment, messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def start(record: "dict[str, Any]", lock: int) -> None:
    """Start ``settle``, which waits for the end of the load. It inherits ``lock``, and the instance stays locked.

    The new process has a session of its own, and none of HAProxy's descriptors and variables. A failure is logged: the
    load itself goes on.
    """
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            _become_settle(record, lock)
    except OSError as error:
        messages.write(record["name"], "error", f"this load is not watched: {error.strerror}")
    finally:
        os._exit(0)


def _become_settle(record: "dict[str, Any]", lock: int) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.set_inheritable(lock, True)
    os.closerange(3, lock)
    os.closerange(lock + 1, max([64, record.get("lock_descriptor", 0), *record["fds"].values()]) + 1)
    kept = {key: value for key, value in environment.operators(os.environ).items() if key != "NOTIFY_SOCKET"}
    runtime, name = os.path.split(record["directory"])
    program = record.get("command_path") or record["wrapper"]
    os.execve(program, [program, "settle", "--runtime-dir", runtime, "--lock-fd", str(lock), name], kept)
