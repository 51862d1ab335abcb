"""Run the guard: ``multibinder serve --guard`` becomes ``python -m multibinder.cli.guard_main SETTINGS``."""

from __future__ import annotations

import sys

import msgspec

from multibinder import MultibinderError
from multibinder.binder import guard
from multibinder.cli import binder_main
from multibinder.cli.logs import log_to


def command(settings: str) -> list[str]:
    """Return the command that becomes the guard, in the version that is installed now."""
    return [sys.executable, "-P", "-m", "multibinder.cli.guard_main", settings]


def main() -> None:
    """Run the guard with the settings in the first argument. With a second argument, only try the imports."""
    settings, *rehearsal = sys.argv[1:]
    invocation = msgspec.json.decode(settings, type=binder_main.Invocation)
    if rehearsal:
        return
    try:
        log_to(invocation.log_file, invocation.log_format, invocation.log_level)
    except MultibinderError as error:
        sys.exit(f"multibinder: {error}")
    pidfile = invocation.settings.pidfile
    guarded = msgspec.structs.replace(invocation, settings=msgspec.structs.replace(invocation.settings, pidfile=None))
    binder_command = binder_main.command(msgspec.json.encode(guarded).decode())
    status = guard.run(binder_command, command(settings), pidfile)
    sys.exit(128 - status if status < 0 else status)  # the exit code of a shell for a program that a signal ended


if __name__ == "__main__":
    main()
