"""Make a network namespace for a test, and run the doctor."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from multibinder.kernel.namespaces import in_network_namespace_of, network_namespace_of
from tests.support import multibinder, require, wait_until

T = TypeVar("T")
Json = dict[str, Any]

_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1


class Network:
    """A network namespace with a loopback interface, kept by a process that does nothing."""

    def __init__(self) -> None:
        for tool in ("unshare", "nsenter"):
            require(tool, shutil.which(tool), f"there is no {tool} (util-linux)")
        possible = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
        require("netns", possible.returncode == 0, f"no network namespace can be made: {possible.stderr}")
        self._process = subprocess.Popen(["unshare", "--net", "sleep", "600"])
        self.pid = self._process.pid
        try:
            wait_until(
                lambda: network_namespace_of(self.pid) != network_namespace_of(), "the process is in a new namespace"
            )
            wait_until(lambda: Path(f"/proc/{self.pid}/comm").read_text() == "sleep\n", "it sleeps")
            self.run(_raise_loopback)
        except BaseException:
            self.end()
            raise

    @property
    def prefix(self) -> list[str]:
        """Return the words before a command that run it in the namespace."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net"]

    def run(self, action: Callable[[], T]) -> T:
        """Run the action in a thread of this process in the namespace. Its sockets stay in the namespace."""
        return in_network_namespace_of(self.pid, action)

    def set(self, sysctl: str, value: int) -> None:
        self.run(lambda: Path("/proc/sys", *sysctl.split(".")).write_text(str(value)))

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


@contextlib.contextmanager
def network() -> Iterator[Network]:
    made = Network()
    try:
        yield made
    finally:
        made.end()


def doctor(*arguments: str | os.PathLike[str], prefix: Sequence[str] = (), status: int | None = None) -> Json:
    """Run the doctor, and return its report from JSON. It must exit with ``status``."""
    done = multibinder("doctor", "--json", *arguments, prefix=prefix)
    assert done.stderr == "", done.stderr
    report: Json = json.loads(done.stdout)
    assert done.returncode == ["ok", "warning", "problem", "unknown"].index(report["status"])
    assert status is None or done.returncode == status, report
    return report


def findings(report: Json, check: str) -> list[Json]:
    return [finding for finding in report["findings"] if finding["check"] == check]
