"""The console script: ``exec`` at once, with the standard library alone, and every other command by ``cli.main``."""

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

#: The exit code of env(1) for a command that was not tried. It stands here, because the import may have failed.
_NOT_TRIED = 125


def main() -> None:
    """Run one command. ``exec`` becomes its program, or goes to the full parser, which has the sentences."""
    is_exec = sys.argv[1:2] == ["exec"]
    try:
        if is_exec:
            _exec(sys.argv[2:])
        from multibinder.cli.main import main as command_line
    except (ImportError, SyntaxError) as error:
        _fail(
            f"the installation is not whole: {error}; is an upgrade under way? try again later, or install it anew",
            is_exec,
        )
    except OSError as error:
        _fail(f"cannot start: {error.filename or 'a module'}: {(error.strerror or str(error)).lower()}", is_exec)
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


def _fail(sentence: str, is_exec: bool) -> "NoReturn":
    try:
        os.write(2, f"multibinder: {sentence}\n".encode(errors="backslashreplace"))
    except OSError:
        pass
    sys.exit(_NOT_TRIED if is_exec else 1)
