"""waitress: serve() ends by SystemExit."""

import signal
import sys

from waitress import serve
from wsgi_app import app

import multibinder


def stop(*_: object) -> None:
    sys.exit(0)


signal.signal(signal.SIGTERM, stop)
listener = multibinder.bind("127.0.0.1", int(sys.argv[1]))
print("ready", flush=True)
serve(app, sockets=[listener], threads=8)
