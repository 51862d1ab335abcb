"""What ``exec`` says and with which code it exits, after the command line is read. Standard library alone."""

import errno
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
        say("error", _sentence(error))
    sys.exit(failure.OWN_FAILURE)


def say(level: str, text: str) -> None:
    """Write a sentence to stderr. A log that cannot be written keeps no program from its start."""
    word = "" if level == "error" else f"{level}: "
    shown = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    try:
        status = os.fstat(_STDERR)
        is_journal = os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
        prefix = f"<{_PRIORITIES[level]}>" if is_journal else ""
        _write(f"{prefix}multibinder exec: {word}{shown}\n".encode(errors="backslashreplace"))
    except OSError:
        pass


def _write(line: bytes) -> None:
    try:
        # Most starts have nothing to say, and do not pay for this.
        from multibinder.kernel.line_writer import write_now
    except (ImportError, OSError):  # no descriptor is free, or the installation is being replaced
        os.write(_STDERR, line)
    else:
        write_now(_STDERR, line)


def _sentence(error: OSError) -> str:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"no file can be opened: {(error.strerror or '').lower()}; raise LimitNOFILE=, or 'ulimit -n'"
    return f"{error.filename or 'cannot start'}: {(error.strerror or str(error)).lower()}"
