"""A hostile client, run as a program of its own: ``hostile.py WAY PATH HOST SECONDS SEED``.

It imports nothing of this project, so that another user can execute it.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import random
import socket
import sys
import time

WAYS = ("flood", "half", "garbage", "descriptors", "deaf", "dies")
#: The ports that these clients ask for and never receive.
PORTS = range(25000, 25050)


def main(way: str, path: str, host: str, seconds: float, seed: int) -> None:
    """Misuse the control socket in one way for some seconds."""
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    held: list[socket.socket] = []
    while time.monotonic() < end:
        # What fails is what a hostile client deserves.
        with contextlib.suppress(OSError):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(0.2)
            client.connect(path)
            port = chance.choice(PORTS)
            params = [{"address": host, "port": port, "owner": "hostile"}]
            bind = json.dumps({"jsonrpc": "2.0", "method": "bind", "id": 1, "params": params}).encode()
            if way == "flood":
                held = [*held[-400:], client]
            elif way == "half":
                client.send(bind[: chance.randrange(1, len(bind))])
                held = [*held[-50:], client]
            elif way == "garbage":
                client.send(chance.randbytes(chance.randrange(1, 5000)))
                client.close()
            elif way == "descriptors":
                number = os.open("/dev/null", os.O_RDONLY)
                rights = array.array("i", [number] * 100)
                client.sendmsg([bind], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                os.close(number)
                client.close()
            elif way == "deaf":
                client.send(b'{"jsonrpc":"2.0","method":"list","id":1}\n' * 100)
                held = [*held[-50:], client]
            elif way == "dies":
                client.send(bind + b"\n")
                client.close()  # it never reads the answer
                time.sleep(0.005)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), int(sys.argv[5]))
