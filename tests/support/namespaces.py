"""Run tests in new namespaces: without other processes, and with network counters that only the test moves."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support.requirements import require
from tests.support.waiting import PATIENCE_S, wait_until

_INSIDE = "MULTIBINDER_TEST_INSIDE"
_CLONE_NEWNET, _SIOCSIFFLAGS, _IFF_UP = 0x40000000, 0x8914, 1
_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


def in_new_namespaces(test: Callable[..., None]) -> Callable[..., None]:
    """Run this test in a separate pytest, in new PID, network and mount namespaces.

    That pytest is PID 1. It may look into every process of its namespace; in a container, root may not look into PID 1.
    When it ends, the kernel ends all that it started.
    """

    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        if _INSIDE in os.environ:
            test(**fixtures)
            return
        require("root", os.geteuid() == 0, "making namespaces needs root")
        for tool in ("unshare", "ip"):
            require(tool, shutil.which(tool), f"there is no {tool}")
        unshare = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        possible = subprocess.run([*unshare, "true"], capture_output=True, text=True, check=False)
        require("namespaces", possible.returncode == 0, f"no namespaces can be made here: {possible.stderr}")
        name = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", name]
        done = subprocess.run(
            [*unshare, "sh", "-c", 'ip link set lo up && "$@"', "sh", *pytest_],
            # Plugins that are only installed would take a third of the time of its start.
            env={**os.environ, _INSIDE: "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S * 6,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if "1 skipped" in done.stdout:
            pytest.skip(done.stdout.strip().splitlines()[-2])

    return run


class NetworkNamespace:
    """A new network namespace with a name (``ip netns add``), whose loopback interface is up.

    ``pid`` is a process in it. Leaving the context manager ends the process and removes the name.
    """

    def __init__(self, name: str) -> None:
        self.name = f"mb-{os.getpid()}-{name}"
        self._holder: subprocess.Popen[bytes] | None = None

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    @property
    def pid(self) -> int:
        if self._holder is None:
            self._holder = subprocess.Popen(self.command("sleep", "infinity"))
            wait_until(lambda: os.stat(f"/proc/{self.pid}/ns/net").st_ino == self.number, "the process is inside")
        return self._holder.pid

    @property
    def number(self) -> int:
        return os.stat(self.path).st_ino

    def command(self, *command: str) -> list[str]:
        """Return the command that runs ``command`` inside."""
        return ["nsenter", f"--net={self.path}", *command]

    def run(self, *command: str) -> str:
        return subprocess.run(
            self.command(*command), capture_output=True, text=True, timeout=PATIENCE_S, check=True
        ).stdout

    def end_process(self) -> None:
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
            self._holder = None

    def remove_name(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True, timeout=PATIENCE_S, check=False)

    def __enter__(self) -> NetworkNamespace:
        require("root", os.geteuid() == 0, "making namespaces needs root")
        for tool in ("ip", "nsenter"):
            require(tool, shutil.which(tool), f"there is no {tool}")
        done = subprocess.run(["ip", "netns", "add", self.name], capture_output=True, text=True, check=False)
        require("namespaces", done.returncode == 0, f"no namespaces can be made here: {done.stderr}")
        self.run("ip", "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        self.end_process()
        self.remove_name()


def in_new_network(action: Callable[[], T], **settings: str) -> T:
    """Call ``action`` in a thread that is in a new network namespace, and return its result or raise its exception.

    Loopback is up there, and ``settings`` of ``net.ipv4`` are made. Sockets that ``action`` returns stay in it.
    """
    require("root", os.geteuid() == 0, "making namespaces needs root")

    def run() -> T:
        if _libc.unshare(_CLONE_NEWNET) != 0:
            require("namespaces", False, f"no namespaces can be made here: {os.strerror(ctypes.get_errno())}")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
        for name, value in settings.items():
            Path("/proc/sys/net/ipv4", name).write_text(value)
        return action()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()
