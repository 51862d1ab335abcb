"""Why a command could not be executed, and the exit code that says so: those of env(1) and of shells."""

import errno
import os

NOT_FOUND, NOT_EXECUTABLE = 127, 126
#: The exit code of env(1) for a failure of its own: the command was not tried.
OWN_FAILURE = 125


def exit_code(error: OSError) -> int:
    """Return 127 for a command that is not found, 126 for one that cannot be executed."""
    return NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE


def sentence(error: OSError, program: str) -> str:
    """Return what the operator is told. ``error`` is that of ``become`` for a command that begins with ``program``."""
    file = os.fsdecode(error.filename) if error.filename else program
    if error.errno == errno.ENOENT:
        if "/" in file and os.access(file, os.F_OK):
            return f"cannot execute {file}: the interpreter in its first line, or its dynamic loader, is not there"
        where = "" if "/" in program else " in PATH"
        return f"command not found: {program}{where}; is its package installed?"
    if error.errno == errno.EACCES and os.path.isdir(file):
        return f"cannot execute {file}: it is a directory"
    if error.errno == errno.EACCES:
        return f"cannot execute {file}: permission denied; it needs the mode x, and a file system without noexec"
    if error.errno == errno.E2BIG:
        return f"cannot execute {file}: its arguments and environment are too long for the kernel (execve(2))"
    return f"cannot execute {file}: {(error.strerror or str(error)).lower()}"
