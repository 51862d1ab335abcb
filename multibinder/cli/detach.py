"""Detach from the terminal, as ``multibinder serve --detach`` does where no supervisor runs the binder."""

from __future__ import annotations

import os

from multibinder.binder.ready import DETACHED, READY
from multibinder.cli.say import say
from multibinder.kernel.listen_fds import pass_listen_fds, take_listen_fds


def detach() -> None:
    """Continue in a detached process, which keeps the inherited descriptors.

    The calling process waits until the binder reports that it is ready, and exits with 0. If the binder ends before
    that, the calling process prints the binder's error and exits with 1.
    """
    from daemon import DaemonContext  # python-daemon; imported only with --detach

    given = take_listen_fds(os.environ)
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        _exit_when_ready(reading)
    os.close(reading)
    # python-daemon closes every descriptor outside files_preserve, sets the umask to 0 and changes to /.
    kept = [*(descriptor for _, descriptor in given), writing]
    stderr = os.fdopen(writing, "w", closefd=False)
    DaemonContext(files_preserve=kept, umask=0o077, stderr=stderr, detach_process=True).open()
    for number in (0, 1, 2):
        # python-daemon's /dev/null is close-on-exec if open(2) returned one of these numbers.
        os.set_inheritable(number, True)
    os.environ[DETACHED] = "1"
    pass_listen_fds(given, os.environ)


def _exit_when_ready(reading: int) -> None:
    output = b""
    while chunk := os.read(reading, 65536):
        output += chunk
        if READY in output.splitlines(keepends=True):  # a guard's binder may write more in the same chunk
            os._exit(0)
    text = output.decode(errors="replace") or "multibinder: the binder ended without an error message\n"
    say(text, err=True, nl=False)
    os._exit(1)
