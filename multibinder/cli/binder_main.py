"""Run the binder: ``multibinder serve`` becomes ``python -m multibinder.cli.binder_main SETTINGS``.

The process lives for months and keeps every module that it imported, so it does not import click.
"""

from __future__ import annotations

import gc
import os
import sys

from multibinder.cli.shortage import shortage

try:
    import msgspec

    from multibinder import MultibinderError, __version__
    from multibinder.binder import daemon
    from multibinder.binder.holder_scan import FindHolders
    from multibinder.binder.next_version import KNOWN, POLICY_REQUIRED
    from multibinder.binder.program import Program
    from multibinder.binder.settings import Timings
    from multibinder.binder.trial import try_start
    from multibinder.binder.upgrade import KNOWS, NONCE, WORD
    from multibinder.cli.invocation import Invocation, binder_command
    from multibinder.cli.logs import log_to, try_log_file
    from multibinder.kernel.std_descriptors import open_std_descriptors
    from multibinder.observe.holders import holders_of, who_listen_on
except Exception as error:
    # After an upgrade's execve(2), too: no file can be opened, or the installation is being replaced.
    sys.exit(shortage(error))

#: A collection of the oldest objects takes the loop for 25 ms with 14,000 listeners, which stay. By default there would
#: be one for each few thousand binds. Those of young objects find nearly all garbage.
_GC_THRESHOLDS = (700, 10, 1000)


def rehearse() -> None:
    """Check that this version can take over: its modules are imported, and what its start needs is there.

    A running binder starts this as a trial before it upgrades. Exits with 1 and a sentence on stderr if it cannot. The
    running binder believes only the line with its own nonce; one of 0.1.0 knows no nonce, and reads the version.
    """
    invocation = msgspec.json.decode(sys.argv[1], type=Invocation)
    try:
        try_start(invocation.settings, policy_required=POLICY_REQUIRED in os.environ)
        if invocation.log_file is not None:
            try_log_file(invocation.log_file)
    except MultibinderError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"the trial start failed: {error.strerror or error}")
    nonce = os.environ.get(NONCE)
    if nonce:
        sys.stdout.write(f"{KNOWS} {nonce} {' '.join(KNOWN)}\n{WORD} {nonce} {__version__}\n")
    else:
        sys.stdout.write(f"{__version__}\n")
    sys.stdout.flush()


def main(timings: Timings = Timings(), find_holders: FindHolders = holders_of) -> None:  # noqa: B008 (it is frozen)
    """Run the binder with the settings in the first argument, until it is told to stop.

    Tests pass shorter timings, or a slower search for holders.
    """
    open_std_descriptors()
    gc.set_threshold(*_GC_THRESHOLDS)
    invocation = msgspec.json.decode(sys.argv[1], type=Invocation)
    try:
        # A binder that has inherited its listeners must serve them, also without its log file.
        log_to(
            invocation.log_file,
            invocation.log_format,
            invocation.log_level,
            required=not _inherits(),
        )
        program = Program(
            __version__,
            binder_command(sys.argv[1]),
            who_listens=who_listen_on,
            find_holders=find_holders,
            timings=timings,
        )
        daemon.run(invocation.settings, program)
    except MultibinderError as error:
        sys.exit(f"multibinder: {error}")
    except (OSError, MemoryError) as error:
        sys.exit(shortage(error))


def _inherits() -> bool:
    """Return whether descriptors were passed to this process."""
    environment = os.environ
    return environment.get("LISTEN_PID") == str(os.getpid()) and environment.get("LISTEN_FDS", "0") != "0"


if __name__ == "__main__":
    main()
