"""The console script, and what HAProxy's master executes in place of itself.

HAProxy's master re-executes argv[0] to reload (SIGUSR2, or ``reload`` on its CLI); ``run`` put this program's name
there. HAProxy up to 3.0 does so a second time after each load, to free the memory of the configuration, with
HAPROXY_MWORKER_WAIT_ONLY set: then nothing but its own exec is wanted, so nothing more than that needs is imported.
"""

import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_EXEC_TRIES, _EXEC_PAUSE_S = 100, 0.1
_VARIABLE = "MULTIBINDER_HAPROXY"


def main() -> None:
    arguments = sys.argv[1:]
    # HAProxy's arguments begin with an option, our own commands do not.
    if "HAPROXY_MWORKER_REEXEC" in os.environ and arguments and arguments[0].startswith("-"):
        record = _record(arguments)
        if record is not None:
            if "HAPROXY_MWORKER_WAIT_ONLY" not in os.environ:
                _resume(record, arguments)
            exec_haproxy(json.loads(record)["haproxy"], [sys.argv[0], *arguments])
    from multibinder_haproxy.cli import main as command_line

    command_line()


def _resume(record: str, arguments: list[str]) -> None:
    """Load the configuration afresh and become HAProxy. Returns only when that fails: even an upgrade of ours that
    left half a package behind must not cost the old workers their master."""
    try:
        from multibinder_haproxy.start import resume

        resume(record, arguments)
    except Exception as error:
        what = f"reload: {type(error).__name__}: {error}"
        sys.stderr.write(f"multibinder-haproxy error: {what}; HAProxy goes on with the files as they are\n")
        sys.stderr.flush()


def _record(arguments: list[str]) -> str | None:
    """The invocation as JSON: from the environment, or, where a config's ``resetenv`` took that away (HAProxy up to
    3.0 applies it to the master), from beside the rendered file that -f names."""
    if _VARIABLE in os.environ:
        return os.environ[_VARIABLE]
    for flag, value in zip(arguments, arguments[1:], strict=False):  # noqa: RUF007 (fast start)
        if flag in ("-f", "--"):
            try:
                path = os.path.join(os.path.dirname(value), "instance.json")
                with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), encoding="utf-8") as file:
                    # It names programs to execute: a stranger's is not believed (see ownership.py).
                    if os.fstat(file.fileno()).st_uid in (0, os.geteuid()):
                        return file.read()
            except OSError:
                continue
    return None


def exec_haproxy(haproxy: str, command: list[str]) -> "NoReturn":
    """Become HAProxy. ``command`` is its argv, whose first word names this wrapper."""
    import signal
    import time

    # Python ignores these two, and an ignored signal stays ignored across exec (signal(7)).
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    for _ in range(_EXEC_TRIES):
        try:
            os.execv(haproxy, command)
        except OSError as error:
            # A package upgrade may be replacing it just now, and the old workers need their master.
            failure = error
            time.sleep(_EXEC_PAUSE_S)
    sys.exit(f"multibinder-haproxy: cannot execute {haproxy}: {failure.strerror}; is the haproxy package installed?")
