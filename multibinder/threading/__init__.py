"""Serve ``socketserver`` and ``http.server`` on listeners of the binder, and stop without losing a client.

    import http.server, multibinder.threading

    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello\\n")

    listener = multibinder.bind("127.0.0.1", 8000, owner="hello")
    with multibinder.threading.Server(listener, Hello, drain=30) as server:
        server.serve_forever()

At SIGTERM the server accepts no more, finishes the clients that it has, and returns. Clients that wait are left to
another copy, or to the next one.
"""

from multibinder.threading.server import Server

__all__ = ["Server"]
