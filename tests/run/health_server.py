#!/usr/bin/env python3
"""An HTTP server with an address for its clients and one for its health, for tests of ``run``.

``python health_server.py BEHAVIOUR-FILE CLIENTS HEALTH``: two descriptors. It serves clients when its health is good,
and finishes at SIGTERM. The behaviours: good, exits, hangs, late SECONDS (health is 503 before), dies SECONDS (after
its health was asked), eager (serves clients at once), and what its health answers for ever: status N, garbage,
closes, redirects.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path


def main() -> None:
    word, _, more = Path(sys.argv[1]).read_text().strip().partition(" ")
    number = float(more or 0)
    clients, health = (socket.socket(fileno=int(each)) for each in sys.argv[2:4])
    say(f"generation {os.environ['MULTIBINDER_GENERATION']} is {word}")
    if word == "exits":
        sys.exit("no such table: customers")
    if word == "hangs":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    reading, writing = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(writing, b"x"))
    is_told = False
    begun, asked_at = time.monotonic(), None
    with selectors.DefaultSelector() as waiting:
        for file in (health, reading):
            waiting.register(file, selectors.EVENT_READ)
        clients.setblocking(False)
        if word == "eager":
            waiting.register(clients, selectors.EVENT_READ)
        while not is_told:
            if asked_at and word == "dies" and time.monotonic() - asked_at > number:
                say("out of memory")
                os._exit(137)
            for key, _ in waiting.select(0.05):
                if key.fileobj == reading:
                    is_told = True
                elif key.fileobj is clients:
                    answer(clients, b"HTTP/1.0 200 OK\r\n\r\n%d" % os.getpid())
                elif key.fileobj is health:
                    good = word in ("good", "dies", "redirects") or (
                        word == "late" and time.monotonic() - begun > number
                    )
                    answer(health, health_answer(word, more, good=good))
                    if good and clients not in waiting.get_map():
                        waiting.register(clients, selectors.EVENT_READ)
                        asked_at = asked_at or time.monotonic()


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def health_answer(word: str, more: str, *, good: bool) -> bytes:
    if word == "redirects":
        return b"HTTP/1.1 301 Moved\r\nLocation: /login\r\n\r\n"
    if good:
        return b"HTTP/1.1 200 OK\r\n\r\n"
    answers = {"status": b"HTTP/1.1 %s Bad\r\n\r\n" % more.encode(), "garbage": bytes(range(256)), "closes": b""}
    return answers.get(word, b"HTTP/1.1 503 Starting\r\n\r\n")


def answer(listener: socket.socket, text: bytes) -> None:
    try:
        client, _ = listener.accept()
    except OSError:
        return  # the other copy was faster
    with client:
        client.settimeout(5)
        try:
            client.recv(4096)
            client.sendall(text)
        except OSError:
            pass  # the client has gone


if __name__ == "__main__":
    main()
