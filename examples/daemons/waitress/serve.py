"""waitress on the listener that it inherits (LISTEN_FDS, sd_listen_fds(3))."""

import os
import signal
import socket
import sys
import threading

from app import app
from waitress.server import create_server

if os.environ.get("LISTEN_PID") != str(os.getpid()):
    sys.exit("start me with: multibinder exec -b 127.0.0.1:8000 -- python serve.py")
# waitress calls listen() with the backlog, 1024 by default, for every process that has the listener.
server = create_server(app, sockets=[socket.socket(fileno=3)], threads=8, backlog=4096)


def stop(*_: object) -> None:
    server.accepting = False  # readable() of the listener is false then: accept no more clients
    threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()  # longer than any request takes


signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
server.run()
