"""Loopback addresses for tests, and connections to them."""

from __future__ import annotations

import errno
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
_ports = itertools.count()
#: Ports for each worker, from 22000 on: below those that the kernel chooses (ip_local_port_range, ip(7)).
_FIRST_PORT, _PORTS = 22000, 600


def own_host() -> str:
    """Return a loopback address that no other test of this run uses, so that the test can choose any port on it.

    The second number stands for the run, because several runs may share a machine. The third starts at 16 times the
    number of the worker (pytest-xdist), so that each worker has 16 times 250 addresses.
    """
    number = next(_hosts)
    assert number < 16 * 250, "this worker has used all its addresses"
    return f"127.{64 + _run() % 128}.{16 * _worker() + number // 250}.{number % 250 + 1}"


def own_port() -> int:
    """Return a port that no other test of this run uses, for a test that binds wildcard addresses.

    A port that the kernel chose, and that is closed again, may be the next one that it gives to another test.
    """
    while (number := next(_ports)) < _PORTS:
        port = _FIRST_PORT + _PORTS * _worker() + (_run() + number) % _PORTS
        with socket.socket() as sock:
            try:
                sock.bind(("0.0.0.0", port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue  # another run, or another program
            return port
    raise AssertionError("this worker has used all its ports")


def _run() -> int:
    """Return a number that differs between runs on one machine, most likely."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    return zlib.crc32(run.encode()) if run else os.getpid()


def _worker() -> int:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    assert worker < 16, "there are addresses for 16 workers"
    return worker
