"""What ``exec`` says and with which code it exits, after the command line is read. Standard library alone."""

import os
import sys

from multibinder.launch.direct.errors import Away, Refused
from multibinder.launch.exec import failure
from multibinder.launch.exec.errors import CommandFailed
from multibinder.launch.exec.start import start
from multibinder.launch.styles.errors import StyleError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from multibinder.launch.exec.request import Request

#: The priorities of syslog(3), which the journal reads at the start of a line (sd-daemon(3)).
_PRIORITIES = {"error": 3, "warning": 4, "info": 6}
_STDERR = 2


def become(request: "Request") -> "NoReturn":
    """Become the program, or exit with the code that says why not."""
    try:
        start(request, say)
    except CommandFailed as error:
        say("error", str(error))
        sys.exit(error.exit_code)
    except (Refused, Away, StyleError) as error:
        say("error", str(error))
    except OSError as error:
        say("error", f"{error.filename or 'cannot start'}: {(error.strerror or str(error)).lower()}")
    sys.exit(failure.OWN_FAILURE)


def say(level: str, text: str) -> None:
    """Write a sentence to stderr. A log that cannot be written keeps no program from its start."""
    # Imported here, because most starts have nothing to say.
    from multibinder.kernel.line_writer import write_now
    from multibinder.kernel.terminal import printable_lines

    try:
        status = os.fstat(_STDERR)
        is_journal = os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
        prefix = f"<{_PRIORITIES[level]}>" if is_journal else ""
        word = "" if level == "error" else f"{level}: "
        line = f"{prefix}multibinder exec: {word}{printable_lines(text)}\n"
        write_now(_STDERR, line.encode(errors="backslashreplace"))
    except OSError:
        pass
