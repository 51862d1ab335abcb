"""The binder's process: ``python -m multibinder.cli.binder SETTINGS``. ``multibinder serve`` becomes this.

It lives for months with everything that was ever imported, so it does not import click.
"""

from __future__ import annotations

import logging
import sys

import msgspec

from multibinder import MultibinderError, __version__
from multibinder.binder import daemon
from multibinder.cli.logs import log_to_stderr
from multibinder.observe.holders import who_listens_on


class Invocation(msgspec.Struct, frozen=True):
    """What ``multibinder serve`` was told, checked. Travels as one JSON argument."""

    settings: daemon.Settings
    log_format: str = "text"
    log_level: int = logging.INFO


def main() -> None:
    invocation = msgspec.json.decode(sys.argv[1], type=Invocation)
    log_to_stderr(invocation.log_format, invocation.log_level)
    try:
        daemon.serve(invocation.settings, __version__, lambda address: str(who_listens_on(address)))
    except MultibinderError as error:
        sys.exit(f"multibinder: {error}")


if __name__ == "__main__":
    main()
