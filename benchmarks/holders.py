"""Measure what a look for the holders of 10,000 listeners costs, on a host with some 500 processes and a busy proxy.

    python -m benchmarks.holders

Each of the three holders has an epoll instance that watches all listeners, as HAProxy's workers do. The process that
scans has the listeners open too and excludes itself, as the binder does. The proxy has 15,000 other sockets open: a
scan reads them all, a regular look none of them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time

from benchmarks import rig
from multibinder.kernel.descriptors import scan
from multibinder.observe.holders import holders_of
from multibinder.observe.sock_diag import listening_sockets

HOLDER = """
import contextlib, os, select, sys
epoll = select.epoll()
for name in os.listdir("/proc/self/fd"):
    with contextlib.suppress(OSError):
        if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
            epoll.register(int(name), select.EPOLLIN)
print("ready", flush=True)
epoll.poll()
"""

PROXY = """
import resource, socket, sys, time
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
print("ready", flush=True)
time.sleep(600)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=rig.summary_of(__doc__))
    parser.add_argument("--listeners", type=int, default=10_000, help="(default: %(default)s)")
    parser.add_argument("--holders", type=int, default=3, help="processes that hold them all (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=400, help="other processes (default: %(default)s)")
    parser.add_argument("--sockets", type=int, default=15_000, help="of the proxy (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    options = parser.parse_args()
    rig.raise_descriptor_limit()
    with contextlib.ExitStack() as stack:
        inodes = []
        numbers = []
        for number in range(options.listeners):
            sock = stack.enter_context(socket.socket())
            sock.bind((f"127.{100 + os.getpid() % 100}.{number // 20_000}.1", 20_000 + number % 20_000))
            sock.listen()
            inodes.append(os.fstat(sock.fileno()).st_ino)
            numbers.append(sock.fileno())
        for _ in range(options.processes):
            _start(stack, ["sleep", "600"])
        for _ in range(options.holders):
            holder = _start(stack, [sys.executable, "-c", HOLDER], numbers)
            assert holder.stdout is not None
            holder.stdout.readline()
        proxy = _start(stack, [sys.executable, "-c", PROXY, str(options.sockets)], [0])
        assert proxy.stdout is not None
        proxy.stdout.readline()
        myself = {os.getpid()}
        places = [(inode, places[0]) for inode, places in holders_of(inodes, myself).places.items()]
        assert len(places) == options.listeners
        few = dict(places[:10])
        for what, ask in (
            ("a regular look: one holder of each is verified", lambda: [place.has(inode) for inode, place in places]),
            ("the same for 10 listeners", lambda: [place.has(inode) for inode, place in few.items()]),
            ("a scan for 10 listeners", lambda: scan(list(few), myself)),
            ("scan(): the processes that have them", lambda: scan(inodes, myself)),
            ("holders_of(): also which of them accept", lambda: holders_of(inodes, myself)),
            ("listening_sockets(): queues and drops", listening_sockets),
        ):
            times = []
            for _ in range(options.rounds):
                began = time.perf_counter()
                ask()
                times.append((time.perf_counter() - began) * 1000)
            print(f"{what:50} {statistics.median(times):7.0f} ms  (least {min(times):.0f}, most {max(times):.0f})")


def _start(stack: contextlib.ExitStack, command: list[str], keep: list[int] | None = None) -> subprocess.Popen[str]:
    process = stack.enter_context(
        subprocess.Popen(command, pass_fds=keep or (), stdout=subprocess.PIPE if keep else None, text=True)
    )
    stack.callback(process.kill)
    return process


if __name__ == "__main__":
    main()
