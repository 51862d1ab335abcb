#!/usr/bin/env python3
"""An HTTP server for tests of ``run``: the file that it is given names how it behaves, and a reload can change it.

``python server.py BEHAVIOUR-FILE``: a line ``WORD [SECONDS]``. It answers with its generation, index and PID, says
READY=1, and ends at SIGTERM. The words: good, exits, hangs, dies (SECONDS after it is ready), late (ready after
SECONDS), drains (waits SECONDS at SIGTERM), ignores (SIGTERM), answers500 (without READY=1), forks (a child serves,
too).
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import socket
import sys
import time
from pathlib import Path


def main() -> None:
    word, _, seconds = Path(sys.argv[1]).read_text().strip().partition(" ")
    seconds_s = float(seconds or 0)
    print(f"generation {os.environ['MULTIBINDER_GENERATION']} is {word}", flush=True)
    if word == "exits":
        sys.exit("something is wrong with this version")
    sockets = [socket.socket(fileno=3 + number) for number in range(int(os.environ.get("LISTEN_FDS", "0")))]
    reading, writing = os.pipe()
    told: list[int] = []
    if word not in ("hangs", "ignores"):

        def end(number: int, _: object) -> None:
            told.append(number)
            os.write(writing, b"x")

        signal.signal(signal.SIGTERM, end)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: print("got SIGUSR1", flush=True))
    if word == "late":
        select.select([reading], [], [], seconds_s)
    if word == "forks":
        os.fork()
    dies_at = time.monotonic() + seconds_s if word == "dies" else None
    if word not in ("hangs", "answers500"):
        notify("READY=1")
    with selectors.DefaultSelector() as waiting:
        for sock in sockets if word != "hangs" else []:
            sock.setblocking(False)
            waiting.register(sock, selectors.EVENT_READ)
        waiting.register(reading, selectors.EVENT_READ)
        while not told:
            left = None if dies_at is None else max(0.0, dies_at - time.monotonic())
            if left == 0:
                print("dies now", flush=True)
                os._exit(3)
            for key, _ in waiting.select(left):
                if isinstance(key.fileobj, socket.socket):
                    answer(key.fileobj, 500 if word == "answers500" else 200)
    if word == "drains":
        print("drains", flush=True)
        deadline = time.monotonic() + seconds_s
        while time.monotonic() < deadline and len(told) == 1:
            time.sleep(0.01)
        print("was told twice" if len(told) > 1 else "has drained", flush=True)


def answer(listener: socket.socket, status: int) -> None:
    with contextlib.suppress(OSError):
        client, _ = listener.accept()
        with client:
            client.settimeout(5)
            client.recv(4096)
            body = f"{os.environ['MULTIBINDER_GENERATION']} {os.environ['MULTIBINDER_INDEX']} {os.getpid()}\n"
            client.sendall(f"HTTP/1.0 {status} X\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())


def notify(text: str) -> None:
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(text.encode(), path)


if __name__ == "__main__":
    main()
