"""A UDP server on the socket that it inherits (LISTEN_FDS). It sends each datagram back, and its PID."""

import os
import select
import signal
import socket
import sys

if os.environ.get("LISTEN_PID") != str(os.getpid()):
    sys.exit("start me with: multibinder exec -b udp@127.0.0.1:8000 -- python3 server.py")
server = socket.socket(fileno=3)
server.setblocking(False)  # another copy may take the datagram that this one is waked for
# SIGTERM must not end recvfrom() or what follows it: the datagram that was received would get no answer.
stop, wakeup = socket.socketpair()
wakeup.setblocking(False)
signal.set_wakeup_fd(wakeup.fileno())
signal.signal(signal.SIGTERM, lambda *_: None)
print("ready", flush=True)
while True:
    readable, _, _ = select.select([server, stop], [], [])
    if stop in readable:
        break  # what waits in the socket is for the next copy
    try:
        datagram, client = server.recvfrom(65536)
    except BlockingIOError:
        continue
    server.sendto(datagram + b"%d" % os.getpid(), client)
