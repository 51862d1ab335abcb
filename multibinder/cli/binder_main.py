"""Run the binder: ``multibinder serve`` becomes ``python -m multibinder.cli.binder_main SETTINGS``.

The process lives for months and keeps every module that it imported, so it does not import click.
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
    """The checked options of ``multibinder serve``, passed on as one JSON argument."""

    settings: Settings
    log_format: str = "text"
    log_level: int = logging.INFO
    log_file: str | None = None


def command(settings: str) -> list[str]:
    """Return the command that becomes the binder, in the version that is installed now."""
    # -P keeps the working directory out of sys.path: root must not import what another user placed there.
    return [sys.executable, "-P", "-m", "multibinder.cli.binder_main", settings]


def rehearse() -> None:
    """Check that this version can take over: its modules are imported, its settings and its policy are valid.

    A running binder starts this as a trial before it upgrades. Exits with 1 and a sentence on stderr if it cannot.
    """
    invocation = msgspec.json.decode(sys.argv[1], type=Invocation)
    try:
        load_policy(invocation.settings.policy)
    except MultibinderError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{__version__}\n")


def main(timings: Timings = Timings(), find_holders: FindHolders = holders_of) -> None:  # noqa: B008 (it is frozen)
    """Run the binder with the settings in the first argument, until it is told to stop.

    Tests pass shorter timings, or a slower search for holders.
    """
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
