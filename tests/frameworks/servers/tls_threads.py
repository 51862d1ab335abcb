"""ssl.wrap_socket() of the listener: one thread for each client, which makes its handshake there."""

import os
import signal
import socket
import ssl
import sys
import threading
import time

import multibinder

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(os.environ["CERTIFICATE"])
listener = context.wrap_socket(
    multibinder.bind("127.0.0.1", int(sys.argv[1])), server_side=True, do_handshake_on_connect=False
)


def answer(client: ssl.SSLSocket) -> None:
    with client:
        client.settimeout(10)
        client.do_handshake()
        client.recv(4096)
        time.sleep(0.01)
        client.sendall(b"HTTP/1.0 200 OK\r\n\r\n%d\n" % os.getpid())
        client.unwrap()


signal.signal(signal.SIGTERM, lambda *_: listener.shutdown(socket.SHUT_RDWR))
print("ready", flush=True)
while True:
    try:
        client, _ = listener.accept()
    except OSError:
        break  # shut down, here alone: the other processes accept
    threading.Thread(target=answer, args=(client,)).start()
listener.close()
