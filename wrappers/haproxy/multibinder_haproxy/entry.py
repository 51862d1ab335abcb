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
        if record is not None and "HAPROXY_MWORKER_WAIT_ONLY" in os.environ:
            exec_haproxy(json.loads(record)["haproxy"], [sys.argv[0], *arguments])
        elif record is not None:
            from multibinder_haproxy.start import resume

            resume(record, arguments)
    from multibinder_haproxy.cli import main as command_line

    command_line()


def _record(arguments: list[str]) -> str | None:
    """The invocation as JSON: from the environment, or, where a config's ``resetenv`` took that away (HAProxy up to
    3.0 applies it to the master), from beside the rendered file that -f names."""
    if _VARIABLE in os.environ:
        return os.environ[_VARIABLE]
    for flag, value in zip(arguments, arguments[1:], strict=False):  # noqa: RUF007 (fast start)
        if flag in ("-f", "--"):
            try:
                with open(os.path.join(os.path.dirname(value), "instance.json"), encoding="utf-8") as file:
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
