"""Check what a test needs. A missing requirement skips the test, or fails it if MULTIBINDER_REQUIRE names it."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path

import pytest


def require(name: str, condition: object, reason: str) -> None:
    """Skip a test that cannot run here. If MULTIBINDER_REQUIRE names what is missing, fail instead."""
    if condition:
        return
    if name in os.environ.get("MULTIBINDER_REQUIRE", "").replace(" ", "").split(","):
        pytest.fail(f"MULTIBINDER_REQUIRE names {name}: {reason}", pytrace=False)
    pytest.skip(reason)


def require_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        require("ipv6", False, f"no IPv6 on this machine: {error}")


@functools.cache
def unprivileged_port() -> int:
    """Return the lowest port that every user may bind."""
    return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())


def somaxconn() -> int:
    """Return the kernel's limit on accept queues in this network namespace."""
    return int(Path("/proc/sys/net/core/somaxconn").read_text())
