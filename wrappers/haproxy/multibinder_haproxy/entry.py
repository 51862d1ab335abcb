"""The console script: our own commands, and quickly the one for which clients wait.

Only the standard library is imported here: ``run`` starts HAProxy again after a crash.
"""

import contextlib
import os
import sys

from multibinder_haproxy.reexec import unchanged_start

#: HAProxy's master of a version before 0.2 executes the console script to reload.
_LAUNCHER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reexec", "haproxy")


def main() -> None:
    """Run one of our commands, or become HAProxy again if HAProxy's master executed us."""
    _open_std_descriptors()
    arguments = sys.argv[1:]
    # HAProxy's arguments begin with an option, our own commands do not.
    if "HAPROXY_MWORKER_REEXEC" in os.environ and arguments and arguments[0].startswith("-"):
        os.environ["MULTIBINDER_PYTHON"] = sys.executable
        os.execv(_LAUNCHER, [_LAUNCHER, *arguments])
    if arguments[:1] == ["run"]:
        # Whatever fails, the command in full says why.
        with contextlib.suppress(Exception):
            unchanged_start.start(arguments)
    try:
        if arguments[:1] == ["settle"]:
            from multibinder_haproxy.settle_main import main as settle

            settle(arguments[1:])
        from multibinder_haproxy.cli import main as command_line
    except ImportError as error:
        sys.exit(
            f"multibinder-haproxy: the installation is not whole: {error}; is an upgrade under way? "
            "try again later, or install it anew"
        )
    command_line()


def _open_std_descriptors() -> None:
    """Open /dev/null for each standard descriptor that is closed, as kernel/std_descriptors.py does.

    Otherwise the first listener would become HAProxy's stderr.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                # open(2) returns the lowest free number, which is this one.
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
