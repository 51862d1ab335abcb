"""The guard's process: ``python -m multibinder.cli.guard SETTINGS``. ``multibinder serve --guard`` becomes this."""

from __future__ import annotations

import sys

import msgspec

from multibinder import MultibinderError
from multibinder.binder.guard import Guard
from multibinder.cli import binder
from multibinder.cli.logs import log_to


def command(settings: str) -> list[str]:
    return [sys.executable, "-P", "-m", "multibinder.cli.guard", settings]


def main() -> None:
    settings, *rehearse = sys.argv[1:]
    invocation = msgspec.json.decode(settings, type=binder.Invocation)
    if rehearse:
        return
    try:
        log_to(invocation.log_file, invocation.log_format, invocation.log_level)
    except MultibinderError as error:
        sys.exit(f"multibinder: {error}")
    pidfile = invocation.settings.pidfile
    guarded = msgspec.structs.replace(invocation, settings=msgspec.structs.replace(invocation.settings, pidfile=None))
    binder_command = binder.command(msgspec.json.encode(guarded).decode())
    status = Guard(binder_command, command(settings), pidfile).run()
    sys.exit(128 - status if status < 0 else status)  # as a shell says it: killed by a signal


if __name__ == "__main__":
    main()
