"""A TCP echo server, with a thread for each client, that restarts without losing one. See README.md."""

from __future__ import annotations

import argparse
import contextlib
import logging
import socketserver
import sys

import multibinder
import multibinder.threading


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while arrived := self.request.recv(65536):
                self.request.sendall(arrived)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="numeric (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7007, help="(default: %(default)s)")
    parser.add_argument("--drain", type=float, default=30, help="seconds for clients at a stop (default: %(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        listener = multibinder.bind(arguments.host, arguments.port, owner="echo")
    except multibinder.MultibinderError as error:
        sys.exit(f"echo_server: {error}")
    with multibinder.threading.Server(listener, Echo, drain=arguments.drain) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
