"""Loopback addresses for tests, and connections to them."""

from __future__ import annotations

import itertools
import os
import socket
import zlib

from tests.support.waiting import PATIENCE_S


def is_nonblocking(sock: socket.socket) -> bool:
    """Return whether O_NONBLOCK is set on the socket in the kernel. All holders of the socket share this flag."""
    return not os.get_blocking(sock.fileno())


def can_connect(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=PATIENCE_S).close()
    except (ConnectionRefusedError, ConnectionResetError):  # reset: it was closed in this moment
        return False
    return True


_hosts = itertools.count(1)


def own_host() -> str:
    """Return a loopback address that no other test of this run uses, so that the test can choose any port on it.

    The second number stands for the run, because several runs may share a machine. The third starts at 16 times the
    number of the worker (pytest-xdist), so that each worker has 16 times 250 addresses.
    """
    number = next(_hosts)
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    which = zlib.crc32(run.encode()) if run else os.getpid()
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    assert worker < 16, "there are addresses for 16 workers"
    assert number < 16 * 250, "this worker has used all its addresses"
    return f"127.{64 + which % 128}.{16 * worker + number // 250}.{number % 250 + 1}"
