"""``multibinder serve --detach``: a classic daemon, for what has no better supervisor."""

from __future__ import annotations

import os
import sys

from multibinder.binder.ready import DETACHED, READY
from multibinder.kernel.listen_fds import pass_listen_fds, take_listen_fds


def detach() -> None:
    """Go on in a detached process; the calling one waits for the binder's word that it serves, and exits: 0 when it
    does, else 1 with what the binder said. Inherited descriptors stay."""
    from daemon import DaemonContext

    given = take_listen_fds(os.environ)
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        _wait(reading)
    os.close(reading)
    # python-daemon closes every descriptor outside files_preserve, sets the umask to 0 and changes to /.
    kept = [*(descriptor for _, descriptor in given), writing]
    stderr = os.fdopen(writing, "w", closefd=False)
    DaemonContext(files_preserve=kept, umask=0o077, stderr=stderr, detach_process=True).open()
    for number in (0, 1, 2):
        # Its /dev/null is close-on-exec where open(2) gave it the right number at once.
        os.set_inheritable(number, True)
    os.environ[DETACHED] = "1"
    pass_listen_fds(given, os.environ)


def _wait(reading: int) -> None:
    said = b""
    while chunk := os.read(reading, 65536):
        said += chunk
        if READY in said.splitlines(keepends=True):  # more may come at once, from a guard's binder
            os._exit(0)
    sys.stderr.write(said.decode(errors="replace") or "multibinder: the binder ended without a word\n")
    sys.stderr.flush()
    os._exit(1)
