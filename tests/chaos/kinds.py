"""An instance with a plain configuration, whose listeners are a Unix path, a UDP socket, and two shards of TCP."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.haproxy.support import config

NAME = "plain"
#: The port on which HAProxy receives datagrams, the number of shards of each TCP port, and the name of the path.
UDP_PORT, SHARDS, PATH = 8022, 2, "plain.sock"


def plain_configuration(directory: Path, host: str, ports: Iterable[int]) -> str:
    """Return the text of a configuration without any call of ours: ``--take-binds`` takes its binds over."""
    binds = [f"{host}:{port} shards {SHARDS}" for port in ports]
    log = f"log-forward syslog\n    dgram-bind {host}:{UDP_PORT}\n    log stdout format raw local0\n"
    return config(*binds, f"unix@{directory / PATH} mode 666", after=log)


def held(directory: Path, host: str) -> list[str]:
    """Return the addresses that the binder holds for these, besides TCP."""
    return [f"udp@{host}:{UDP_PORT}", f"unix@{directory / PATH}"]


def violations(directory: Path, host: str) -> list[str]:
    """Return a sentence for each of the Unix path and the UDP port that is not there for clients."""
    found = []
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(BlockingIOError):
        client.settimeout(0)
        try:
            client.connect(str(directory / PATH))
        except BlockingIOError:
            raise  # its queue is full, and clients wait
        except OSError as error:
            found.append(f"clients of {directory / PATH} are refused: {error.strerror}")
    if UDP_PORT not in _udp_ports(host):
        found.append(f"no socket is bound to udp@{host}:{UDP_PORT}")
    return found


def _udp_ports(host: str) -> set[int]:
    address = f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:"
    rows = [line.split()[1] for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return {int(row.partition(":")[2], 16) for row in rows if row.startswith(address)}
