"""Do for a unit of Type=forking what systemd does: adopt what its command leaves, and pass signals on to PIDFile=.

``python -m tests.daemons.forking PIDFILE RELOAD START...``. SIGUSR2 runs RELOAD, SIGQUIT ends the daemon.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def main() -> int:
    pidfile, reload, *start = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    handled = {signal.SIGUSR2, signal.SIGQUIT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    subprocess.run(start, check=True, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, handled))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        received = signal.sigwait(handled)
        if received is signal.SIGUSR2:
            subprocess.run([reload], check=True, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, handled))
            sys.stdout.write("reloaded\n")
            sys.stdout.flush()
        elif received is signal.SIGQUIT:
            os.kill(int(Path(pidfile).read_text()), signal.SIGQUIT)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return 0


if __name__ == "__main__":
    sys.exit(main())
