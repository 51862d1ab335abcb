"""waitress: serve() ends by an exception of a signal handler, so no client must be in the main thread's hands then."""

import signal
import sys
import threading

from waitress import serve
from wsgi_app import app

import multibinder

listener = multibinder.bind("127.0.0.1", int(sys.argv[1]))


def stop(*_: object) -> None:
    if sys.argv[2:] == ["as-it-is"]:
        sys.exit(0)
    listener.pause()
    threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()  # waitress ends by KeyboardInterrupt


signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
serve(app, sockets=[listener], threads=8)
