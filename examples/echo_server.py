"""A TCP echo server whose port stays open while it is replaced. See README.md."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import sys
import threading

import multibinder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="numeric (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7007, help="(default: %(default)s)")
    arguments = parser.parse_args()
    try:
        listener = multibinder.bind(arguments.host, arguments.port, owner="echo")
    except multibinder.MultibinderError as error:
        sys.exit(f"echo_server: {error}")
    # Another copy may be quicker at taking the client that woke us up; accept() must not wait for the next one then.
    listener.setblocking(False)
    stop = _stop_signal()
    watched: list[socket.socket | int] = [listener, stop]
    print(f"ready: pid {os.getpid()} echoes on {arguments.host}:{arguments.port}", flush=True)
    while stop not in select.select(watched, [], [])[0]:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            client, _ = listener.accept()
            threading.Thread(target=_echo, args=(client,)).start()
    # The binder keeps the port: who connects from now on is another copy's, or waits for the next.
    listener.close()
    # Python ends when the last thread has.
    print(f"stopping: pid {os.getpid()} has {threading.active_count() - 1} clients to finish", flush=True)


def _echo(client: socket.socket) -> None:
    with client, contextlib.suppress(ConnectionError):
        while arrived := client.recv(65536):
            client.sendall(arrived)


def _stop_signal() -> int:
    """A descriptor that is readable after the first SIGTERM or SIGINT; the second one kills."""
    readable, writable = os.pipe()

    def on_signal(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        os.write(writable, b"\0")

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return readable


if __name__ == "__main__":
    main()
