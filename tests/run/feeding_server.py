#!/usr/bin/env python3
"""A server that feeds the watchdog as long as its file says so, for tests of ``run`` as the main process of a service.

``python feeding_server.py BEHAVIOUR-FILE``: feeds, or freezes after it has fed for a moment. It tells its service
manager more than a copy may say.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path


def main() -> None:
    clients = socket.socket(fileno=3)
    clients.settimeout(0.05)
    says = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    says.connect(os.environ["NOTIFY_SOCKET"])
    limit_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
    says.send(b"READY=1\nMAINPID=%d\nSTATUS=%g s\nWATCHDOG=1" % (os.getpid(), limit_s))
    says.sendmsg([b"FDSTORE=1\nFDNAME=mine"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, (3).to_bytes(4, sys.byteorder))])
    while True:
        if Path(sys.argv[1]).read_text() == "freezes":
            time.sleep(600)
        says.send(b"WATCHDOG=1")
        try:
            client, _ = clients.accept()
        except TimeoutError:
            continue
        with client:
            client.recv(4096)
            client.sendall(b"HTTP/1.0 200 OK\r\n\r\n%d" % os.getpid())


if __name__ == "__main__":
    main()
