"""The start of an upgraded guard, which waits with the kept sockets while the new code cannot start.

The process that executes the new code has no way back, and no copy of the old code could take its place: a container
ends with its PID 1, a supervisor starts another guard, and the binder is the child of this process alone. So the
process itself must not end. An upgrade executes this text instead of the new guard. It imports the new guard and runs
it. If that fails before the guard serves (half of a package was replaced), this process keeps all descriptors open, and
executes the interpreter again until the guard starts. The binder runs on meanwhile, and signals stay pending.

The running guard reads this text from its file when it starts, so no file of ours is needed at an upgrade. The text may
import the standard library alone.
"""

import contextlib
import json
import os
import signal
import site
import socket
import sys
import time
from typing import NoReturn

#: The environment variables that have this text, and the reason that was logged. The guard removes them when it serves.
_TEXT, _SAID = "MULTIBINDER_GUARD_START", "MULTIBINDER_GUARD_START_FAILED"
#: From one attempt to the next.
_AGAIN_S = 2.0
_REASON_CHARACTERS = 1000
_STOPS = (signal.SIGTERM, signal.SIGINT)


def command(python: str, module: str, settings: str) -> list[str]:
    """Return the command that starts the guard. It needs ``variables()`` in its environment."""
    # -S: start() adds the directories of packages, because a file in them may be what is broken.
    return [python, "-P", "-S", "-c", f"import os; exec(os.environ[{_TEXT!r}])", module, settings]


def variables() -> dict[str, str]:
    """Return the environment variables of ``command``."""
    with open(__file__, encoding="utf-8") as file:
        return {_TEXT: file.read(), _SAID: ""}


def start() -> None:
    """Run the guard of ``sys.argv``: module, settings. Wait and begin again if it fails before it serves."""
    environment = dict(os.environ)
    is_loaded = False
    try:
        sys.argv = sys.argv[1:]
        site.main()
        module = __import__(sys.argv[0], fromlist=["main"])
        is_loaded = True
        module.main()
    except BaseException as error:
        # A guard of an earlier version does not remove the variable. It ends with a number, and fails with a sentence.
        has_ended = is_loaded and isinstance(error, SystemExit) and not isinstance(error.code, str)
        if has_ended or _TEXT not in os.environ:
            raise
        # The exception has the objects of the failed attempt. They would close their descriptors with it.
        _begin_again(environment, error)


def _begin_again(environment: dict[str, str], error: BaseException) -> NoReturn:
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    why = (f"{type(error).__name__}: {error}")[:_REASON_CHARACTERS]
    if environment.get(_SAID) != why:
        _say(why)
    environment[_SAID] = why
    if environment.get("LISTEN_FDS", "").isdigit():
        for descriptor in range(3, 3 + int(environment["LISTEN_FDS"])):
            with contextlib.suppress(OSError):
                os.set_inheritable(descriptor, True)
    while True:
        if stop := signal.sigtimedwait(_STOPS, _AGAIN_S):
            _stop(environment.get("MULTIBINDER_GUARDED_PID", ""), stop.si_signo)
        with contextlib.suppress(OSError):  # the interpreter may be missing, too
            os.execve(sys.orig_argv[0], sys.orig_argv, environment)


def _stop(binder: str, number: int) -> NoReturn:
    """Stop the binder, and exit with its status."""
    status = 0
    with contextlib.suppress(OSError, ValueError):  # there may be none
        os.kill(int(binder), number)
        status = os.waitstatus_to_exitcode(os.waitpid(int(binder), 0)[1])
    sys.exit(0 if -status in _STOPS else 128 - status if status < 0 else status)


def _say(why: str) -> None:
    """Write a line to the log of the settings, in their format. The line is lost if its reader does not read."""
    done = "it keeps the sockets of the binder, and tries again; repair the installation"
    fields = {"level": "error", "event": "guard-start-failed", "why": why, "pid": os.getpid(), "done": done}
    with contextlib.suppress(OSError, ValueError, AttributeError):
        settings = json.loads(sys.argv[1])
        fields = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **fields}
        pairs = [f"{key}={json.dumps(value) if key in ('why', 'done') else value}" for key, value in fields.items()]
        line = json.dumps(fields) if settings.get("log_format") == "json" else " ".join(pairs)
        _write(settings.get("log_file"), f"{line}\n".encode())


def _write(log_file: str | None, line: bytes) -> None:
    # O_NONBLOCK belongs to an open file description, which other processes share. So stderr is opened again.
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        log = os.open(log_file, flags | os.O_NOFOLLOW) if log_file else os.open("/proc/self/fd/2", flags)
    except OSError:
        with socket.socket(fileno=os.dup(2)) as stderr:  # the socket of a journal cannot be opened
            stderr.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    else:
        os.write(log, line)
        os.close(log)


if __name__ == "__main__":
    start()
