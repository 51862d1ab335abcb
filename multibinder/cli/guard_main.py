"""Run the guard: ``multibinder serve --guard`` becomes ``python -m multibinder.cli.guard_main SETTINGS``."""

from __future__ import annotations

import os
import sys

from multibinder.cli.shortage import shortage

try:
    import msgspec

    from multibinder import MultibinderError
    from multibinder.binder import guard
    from multibinder.binder.guard_rehearsal import Upgrade
    from multibinder.binder.pidfile import try_to_write_pidfile
    from multibinder.cli import guard_start
    from multibinder.cli.invocation import GUARD_MODULE, Invocation, binder_command, guard_command
    from multibinder.cli.logs import log_to, try_log_file
    from multibinder.kernel.std_descriptors import open_std_descriptors
except Exception as error:
    # After an upgrade's execve(2), too: no file can be opened, or the installation is being replaced.
    sys.exit(shortage(error))


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
        sys.exit(shortage(error))
    pidfile = invocation.settings.pidfile
    guarded = msgspec.structs.replace(invocation, settings=msgspec.structs.replace(invocation.settings, pidfile=None))
    binder = binder_command(msgspec.json.encode(guarded).decode())
    try:
        upgrade = Upgrade(
            rehearsed=guard_command(sys.argv[1]),
            executed=guard_start.command(sys.executable, GUARD_MODULE, sys.argv[1]),
            variables=guard_start.variables(),
        )
        status = guard.run(binder, upgrade, pidfile, invocation.settings.socket_path)
    except (OSError, MemoryError) as error:
        sys.exit(shortage(error))
    sys.exit(128 - status if status < 0 else status)  # the exit code of a shell for a program that a signal ended


def _invocation() -> Invocation:
    return msgspec.json.decode(sys.argv[1], type=Invocation)


if __name__ == "__main__":
    main()
