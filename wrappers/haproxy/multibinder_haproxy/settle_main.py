"""``multibinder-haproxy settle``, which only our own processes execute. It does without click: it runs after each load.

settle --runtime-dir DIR [--lock-fd N] [--master-fd N] NAME
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from multibinder import MultibinderError
from multibinder.launch.errors import LaunchError
from multibinder_haproxy.former_servers import end_former_servers
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.settle import settle

#: The time for the lock, if this process has not inherited it.
_TIMEOUT_S = 60.0


def main(arguments: Sequence[str]) -> NoReturn:
    """Wait for the end of a load, then make the records and the binder's listeners agree with it."""
    *options, name = arguments
    given = dict(zip(options[::2], options[1::2], strict=True))
    instance = Instance(given["--runtime-dir"], name)
    lock, pidfd = (int(given[option]) if option in given else None for option in ("--lock-fd", "--master-fd"))
    try:
        settle(instance, _TIMEOUT_S, lock, pidfd)
        end_former_servers(instance)
    except (LaunchError, MultibinderError) as error:
        instance.log.write("error", str(error))
        sys.exit(1)
    except OSError as error:
        instance.log.write("error", f"{error.filename or ''}: {error.strerror or error}")
        sys.exit(1)
    sys.exit(0)
