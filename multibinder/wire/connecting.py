"""Connect to a control socket, and wait for a binder that is not there yet."""

from __future__ import annotations

import errno
import math
import os
import socket
import stat
import struct
import time

from multibinder.wire.errors import BinderTimeout, BinderUnavailable

#: The error numbers of a path on which no binder listens: it has not started yet, or it is being restarted.
_ABSENT = (errno.ENOENT, errno.ECONNREFUSED)
#: The pauses between two attempts, in seconds: the first, and the longest.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.2


def connect(path: str, timeout_s: float, wait_s: float = 0.0) -> socket.socket:
    """Return a socket that is connected to a binder, in blocking mode, whose calls wait for ``timeout_s`` seconds.

    A path on which no process listens is tried again for ``wait_s`` seconds. The caller owns the socket. Raises
    BinderUnavailable, and BinderTimeout if the binder's queue stays full.
    """
    until = time.monotonic() + wait_s
    pause_s = _FIRST_PAUSE_S
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A non-blocking connect() fails at once if the binder's queue is full. A blocking one waits for room until
            # the send timeout (unix_stream_connect() in net/unix/af_unix.c).
            limit_waits(sock, timeout_s)
            sock.connect(path)
        except BlockingIOError as error:
            sock.close()
            raise BinderTimeout(f"the binder at {path} did not accept the connection within {timeout_s:g} s") from error
        except OSError as error:
            sock.close()
            left_s = until - time.monotonic()
            if error.errno not in _ABSENT or left_s <= 0 or not _can_become_a_socket(path):
                raise _unavailable(path, error, wait_s) from error
            time.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        except BaseException:
            sock.close()
            raise
        else:
            return sock


def limit_waits(sock: socket.socket, seconds: float) -> None:
    """Set SO_SNDTIMEO and SO_RCVTIMEO (socket(7)), after which a blocking call fails with EAGAIN.

    math.inf sets no limit: the kernel takes 0 for that.
    """
    microseconds = 0 if math.isinf(seconds) else max(1, int(seconds * 1e6))
    timeval = struct.pack("@ll", *divmod(microseconds, 10**6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)


def _unavailable(path: str, error: OSError, waited_s: float) -> BinderUnavailable:
    denied = "permission denied; the binder's --mode and --group say who may connect"
    why = {
        errno.ENOENT: "there is no such socket; is 'multibinder serve' running?",
        errno.ECONNREFUSED: "no process listens there any more; is 'multibinder serve' running?"
        if _can_become_a_socket(path)
        else "it is not a socket",
        errno.EACCES: denied,
        errno.EPERM: denied,
        errno.EPROTOTYPE: "it is a socket of another type, and not the control socket of a binder",
    }.get(error.errno or 0, str(error.strerror or error))
    waited = f" (waited {waited_s:g} s for it)" if waited_s and error.errno in _ABSENT else ""
    return BinderUnavailable(f"cannot reach the binder at {path}: {why}{waited}")


def _can_become_a_socket(path: str) -> bool:
    """Return False if another sort of file is at the path, as far as it can be seen. A binder replaces only sockets."""
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True
