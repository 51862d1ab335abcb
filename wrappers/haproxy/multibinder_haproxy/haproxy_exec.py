"""The execve(2) by which this process becomes HAProxy. Imports only the standard library, for HAProxy's wait mode."""

import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_TRIES, _PAUSE_S = 100, 0.1


def exec_haproxy(haproxy: str, command: list[str]) -> "NoReturn":
    """Become HAProxy. ``command`` is its argv, whose first word names the wrapper.

    Exits the process if HAProxy cannot be executed for ten seconds.
    """
    # Python ignores these two, and an ignored signal stays ignored across exec (signal(7)).
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    for _ in range(_TRIES):
        try:
            os.execv(haproxy, command)
        except OSError as error:
            # A package upgrade may be replacing the program, and the old workers need their master.
            failure = error
            time.sleep(_PAUSE_S)
    sys.exit(f"multibinder-haproxy: cannot execute {haproxy}: {failure.strerror}; is the haproxy package installed?")
