"""The process that systemd runs as ``ExecReload=`` during a takeover: ``TIMEOUT READY COMMAND...``.

It exits with 0 when the new server is the main process of the unit, and with 1 if nothing has changed.
"""

from __future__ import annotations

import sys

from multibinder.cli.say import say
from multibinder.launch.units.errors import TakeoverError
from multibinder.launch.units.starter import start


def main(arguments: list[str]) -> int:
    """Start the server. Return the exit code."""
    timeout_s, ready, *command = arguments
    try:
        start(float(timeout_s), ready, command)
    except (TakeoverError, OSError) as error:
        say(f"multibinder: the new server does not serve: {error}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
