"""The binder's process: ``python -m multibinder.cli.binder_main SETTINGS``. ``multibinder serve`` becomes this.

It lives for months with everything that was ever imported, so it does not import click.
"""

from __future__ import annotations

import logging
import sys

import msgspec

from multibinder import MultibinderError, __version__
from multibinder.binder import daemon
from multibinder.binder.daemon import Program
from multibinder.binder.holder_scan import FindHolders
from multibinder.binder.policy_source import load_policy
from multibinder.binder.settings import Settings, Timings
from multibinder.cli.logs import log_to
from multibinder.observe.holders import holders_of, who_listens_on


class Invocation(msgspec.Struct, frozen=True):
    """What ``multibinder serve`` was told, checked. Travels as one JSON argument."""

    settings: Settings
    log_format: str = "text"
    log_level: int = logging.INFO
    log_file: str | None = None


def command(settings: str) -> list[str]:
    """What to execute to become the binder, as it is installed now."""
    # -P: as root, never import from whatever directory we were started in.
    return [sys.executable, "-P", "-m", "multibinder.cli.binder_main", settings]


def rehearse() -> None:
    """Whether this version could take over: everything is imported by now, the settings and the policy make sense."""
    invocation = msgspec.json.decode(sys.argv[1], type=Invocation)
    try:
        load_policy(invocation.settings.policy)
    except MultibinderError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{__version__}\n")


def main(timings: Timings = Timings(), find_holders: FindHolders = holders_of) -> None:  # noqa: B008 (it is frozen)
    """Run the binder that the first argument describes. Tests pass shorter timings, or a slower search."""
    invocation = msgspec.json.decode(sys.argv[1], type=Invocation)
    try:
        log_to(invocation.log_file, invocation.log_format, invocation.log_level)
        program = Program(
            __version__,
            command(sys.argv[1]),
            who_listens=lambda address: str(who_listens_on(address)),
            find_holders=find_holders,
            timings=timings,
        )
        daemon.run(invocation.settings, program)
    except MultibinderError as error:
        sys.exit(f"multibinder: {error}")


if __name__ == "__main__":
    main()
