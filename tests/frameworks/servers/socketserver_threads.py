"""http.server: one thread for each request, which the end of the server waits for."""

import http.server
import os
import signal
import sys
import threading
import time

import multibinder


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(0.01)
        body = b"%d\n" % os.getpid()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False  # so that server_close() waits for the requests


listener = multibinder.bind("127.0.0.1", int(sys.argv[1]))
server = Server(listener.getsockname(), Handler, bind_and_activate=False)
server.socket.close()
server.socket = listener
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
print("ready", flush=True)
server.serve_forever()
server.server_close()
