"""RLIMIT_NOFILE: room for the listeners that this process is about to receive, and a program to inherit."""

import os
import resource

#: What this process opens at once beside them: pipes, a directory, a connection, a log.
_SPARE = 24


def make_room(more: int, kept_free: int = 0) -> "tuple[int, int] | None":
    """Raise the soft limit of open files as far as ``more`` descriptors need.

    It stays raised: the program inherits the descriptors, and must be able to open others. ``kept_free`` numbers are
    for no listener. Returns the number that is needed and the hard limit, if that is too low and may not be raised.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/proc/self/fd")) + more + _SPARE
    if needed > kept_free:
        needed += kept_free
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return None
    try:
        # With CAP_SYS_RESOURCE the program could raise the hard limit, too.
        raised = hard if hard == resource.RLIM_INFINITY else max(hard, needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, raised))
    except (OSError, ValueError):
        return needed, hard
    return None
