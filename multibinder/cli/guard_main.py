"""Run the guard: ``multibinder serve --guard`` becomes ``python -m multibinder.cli.guard_main SETTINGS``."""

from __future__ import annotations

import os
import sys

import msgspec

from multibinder import MultibinderError
from multibinder.binder import guard
from multibinder.binder.guard_rehearsal import Upgrade
from multibinder.binder.pidfile import try_to_write_pidfile
from multibinder.cli import binder_main, guard_start
from multibinder.cli.logs import log_to, try_log_file
from multibinder.kernel.std_descriptors import open_std_descriptors

_MODULE = "multibinder.cli.guard_main"


def command(settings: str) -> list[str]:
    """Return the command that becomes the guard, in the version that is installed now."""
    return [sys.executable, "-P", "-m", _MODULE, settings]


def rehearse() -> None:
    """Try what a start of this version needs. A running guard does this before it upgrades.

    Exits with 1 and a sentence on stderr if something fails.
    """
    invocation = _invocation()
    try:
        if invocation.log_file is not None:
            try_log_file(invocation.log_file)
        if invocation.settings.pidfile is not None:
            try_to_write_pidfile(invocation.settings.pidfile)
    except MultibinderError as error:
        sys.exit(str(error))


def main() -> None:
    """Run the guard with the settings in the first argument. With a second argument, only rehearse."""
    open_std_descriptors()
    if len(sys.argv) > 2:  # a guard of an earlier version gives a second one
        rehearse()
        return
    invocation = _invocation()
    # A guard that has inherited sockets must keep them, also without its log file.
    required = os.environ.get("LISTEN_PID") != str(os.getpid())
    try:
        log_to(invocation.log_file, invocation.log_format, invocation.log_level, required=required)
    except MultibinderError as error:
        sys.exit(f"multibinder: {error}")
    except (OSError, MemoryError) as error:
        sys.exit(binder_main.shortage(error))
    pidfile = invocation.settings.pidfile
    guarded = msgspec.structs.replace(invocation, settings=msgspec.structs.replace(invocation.settings, pidfile=None))
    binder_command = binder_main.command(msgspec.json.encode(guarded).decode())
    try:
        upgrade = Upgrade(
            rehearsed=command(sys.argv[1]),
            executed=guard_start.command(sys.executable, _MODULE, sys.argv[1]),
            variables=guard_start.variables(),
        )
        status = guard.run(binder_command, upgrade, pidfile, invocation.settings.socket_path)
    except (OSError, MemoryError) as error:
        sys.exit(binder_main.shortage(error))
    sys.exit(128 - status if status < 0 else status)  # the exit code of a shell for a program that a signal ended


def _invocation() -> binder_main.Invocation:
    return msgspec.json.decode(sys.argv[1], type=binder_main.Invocation)


if __name__ == "__main__":
    main()
