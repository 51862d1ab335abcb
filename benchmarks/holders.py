#!/usr/bin/env python3
"""What it costs to learn who holds 10,000 listeners: one pass over /proc, on a host with some 500 processes.

The three holders have an epoll instance that watches them all, as HAProxy's workers do. The process that asks has the
listeners too and is left out, as the binder leaves itself out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import socket
import statistics
import subprocess
import sys
import time

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listeners", type=int, default=10_000)
    parser.add_argument("--holders", type=int, default=3)
    parser.add_argument("--processes", type=int, default=400, help="that hold nothing")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, options.listeners + 200), hard))
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
        myself = {os.getpid()}
        for what, ask in (
            ("scan(): who has them open", lambda: scan(inodes, myself)),
            ("holders_of(): and who accepts", lambda: holders_of(inodes, myself)),
            ("listening_sockets(): queues and drops", listening_sockets),
        ):
            times = []
            for _ in range(options.rounds):
                began = time.perf_counter()
                ask()
                times.append((time.perf_counter() - began) * 1000)
            print(f"{what:40} {statistics.median(times):7.0f} ms  (least {min(times):.0f}, most {max(times):.0f})")


def _start(stack: contextlib.ExitStack, command: list[str], keep: list[int] | None = None) -> subprocess.Popen[str]:
    process = stack.enter_context(
        subprocess.Popen(command, pass_fds=keep or (), stdout=subprocess.PIPE if keep else None, text=True)
    )
    stack.callback(process.kill)
    return process


if __name__ == "__main__":
    main()
