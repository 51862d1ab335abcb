"""Begin a life under strace: pass a listener as sd_listen_fds(3) does, mark where our own code begins, and run it.

``python -P tests/sweep/entry.py MODULE SETTINGS`` imports MODULE (``multibinder.cli.binder_main`` or ``guard_main``).
"""

import contextlib
import importlib
import os
import sys

_, name, settings = sys.argv
listener = int(os.environ.pop("SWEEP_LISTENER"))
if listener != 3:
    os.dup2(listener, 3)
    os.close(listener)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
module = importlib.import_module(name)
sys.argv = [sys.argv[0], settings]
with contextlib.suppress(OSError):
    os.stat("/the-sweep-begins")
module.main()
