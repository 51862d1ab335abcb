"""An HTTP server on the listeners of ``multibinder run``, for the tests of its unit. It answers with its PID.

BEHAVIOUR in the environment: ``good``, or ``exits`` (at once). It feeds the watchdog until SIGUSR1. At SIGTERM it
accepts no more, and finishes the clients that it has.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import threading

_hungry = threading.Event()
_wake_reading, _wake_writing = os.pipe()


def main() -> None:
    if os.environ.get("BEHAVIOUR") == "exits":
        sys.exit("this version is broken")
    listeners = [socket.socket(fileno=3 + number) for number in range(int(os.environ["LISTEN_FDS"]))]
    signal.signal(signal.SIGTERM, lambda *_: os.write(_wake_writing, b"x"))
    signal.signal(signal.SIGUSR1, lambda *_: _hungry.set())
    if "WATCHDOG_USEC" in os.environ:
        notify("WATCHDOG=1")
        threading.Thread(target=feed, args=(int(os.environ["WATCHDOG_USEC"]) / 1e6 / 4,), daemon=True).start()
    notify("READY=1\nSTATUS=fit as a fiddle")
    clients: list[threading.Thread] = []
    with selectors.DefaultSelector() as selector:
        for listener in listeners:
            listener.setblocking(False)
            selector.register(listener, selectors.EVENT_READ)
        selector.register(_wake_reading, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj == _wake_reading:
                    for client in clients:
                        client.join()
                    return
                with contextlib.suppress(BlockingIOError):
                    sock, _ = key.fileobj.accept()  # type: ignore[union-attr]
                    clients = [client for client in clients if client.is_alive()]
                    clients.append(threading.Thread(target=answer, args=(sock,)))
                    clients[-1].start()


def answer(client: socket.socket) -> None:
    """Answer when the whole request is there."""
    with client, contextlib.suppress(OSError):
        client.setblocking(True)
        text = b""
        while b"\r\n\r\n" not in text:
            more = client.recv(4096)
            if not more:
                return
            text += more
        body = b"%d\n" % os.getpid()
        client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


def feed(pause_s: float) -> None:
    while not _hungry.wait(pause_s):
        notify("WATCHDOG=1")


def notify(text: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])


if __name__ == "__main__":
    main()
