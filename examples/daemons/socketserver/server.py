"""http.server on the listener that it inherits (LISTEN_FDS, sd_listen_fds(3)), with one thread for each request."""

import http.server
import os
import signal
import socket
import sys
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"%d\n" % os.getpid()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False  # server_close() waits for the requests


if os.environ.get("LISTEN_PID") != str(os.getpid()):
    sys.exit("start me with: multibinder exec -b 127.0.0.1:8000 -- python3 server.py")
listener = socket.socket(fileno=3)
listener.setblocking(False)
server = Server(listener.getsockname(), Handler, bind_and_activate=False)
server.socket.close()
server.socket = listener
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
print("ready", flush=True)
server.serve_forever()
server.server_close()
