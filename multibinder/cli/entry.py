"""The console script: ``exec`` at once, with the standard library alone, and every other command by ``cli.main``."""

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> None:
    """Run one command. ``exec`` becomes its program, or goes to the full parser, which has the sentences."""
    try:
        if sys.argv[1:2] == ["exec"]:
            _exec(sys.argv[2:])
        from multibinder.cli.main import main as command_line
    except ImportError as error:
        _not_whole(error)
    command_line()


def _exec(arguments: "list[str]") -> None:
    """Become the program of a usual command line; return for any other one."""
    from multibinder.cli.become import become
    from multibinder.kernel.std_descriptors import open_std_descriptors
    from multibinder.launch.exec import quick

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while it waits is no traceback
    open_std_descriptors()
    request = quick.read(arguments, os.environ)
    if request is not None:
        become(request)


def _not_whole(error: ImportError) -> "NoReturn":
    sys.exit(
        f"multibinder: the installation is not whole: {error}; is an upgrade under way? "
        "try again later, or install it anew"
    )
