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
    # Another copy of this program may accept the client that woke up this one. accept() must not block then.
    listener.setblocking(False)
    stop = _watch_for_stop()
    watched: list[socket.socket | int] = [listener, stop]
    print(f"ready: pid {os.getpid()} echoes on {arguments.host}:{arguments.port}", flush=True)
    while stop not in select.select(watched, [], [])[0]:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            client, _ = listener.accept()
            threading.Thread(target=_echo, args=(client,)).start()
    # The binder keeps the port open. New clients go to another copy, or wait for the next one.
    listener.close()
    # Python exits when the last thread has ended.
    print(f"stopping: pid {os.getpid()} has {threading.active_count() - 1} clients to finish", flush=True)


def _echo(client: socket.socket) -> None:
    with client, contextlib.suppress(ConnectionError):
        while arrived := client.recv(65536):
            client.sendall(arrived)


def _watch_for_stop() -> int:
    """Return a descriptor that becomes readable at the first SIGTERM or SIGINT. A second one ends the process."""
    readable, writable = os.pipe()

    def on_signal(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        os.write(writable, b"\0")

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return readable


if __name__ == "__main__":
    main()
