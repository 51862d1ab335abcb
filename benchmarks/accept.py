"""Measure what accept() of a SharedListener costs, as a ratio to that of a plain socket in the same run.

    python -m benchmarks.accept

The clients wait in the queue already, so that only the call itself is measured. The kinds take turns.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import time

from benchmarks import rig
from multibinder import SharedListener

#: The aim: how many times as long as a plain accept() ours may take.
AIM = 1.5

_CLIENTS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=rig.summary_of(__doc__))
    parser.add_argument("--rounds", type=int, default=25, help="rounds of each kind, in turns (default: %(default)s)")
    rounds: int = parser.parse_args().rounds
    for mode, timeout in (("blocking", None), ("non-blocking", 0.0), ("with a timeout", 5.0)):
        with _listening() as plain, SharedListener(fileno=_listening().detach()) as shared:
            plain.settimeout(timeout)
            shared.settimeout(timeout)
            took = [(_microseconds(plain), _microseconds(shared)) for _ in range(rounds)]
        ratio = statistics.median(ours / bare for bare, ours in took)
        bare, ours = (statistics.median(column) for column in zip(*took, strict=True))
        verdict = "reached" if ratio <= AIM else "missed"
        print(f"{mode:15} plain {bare:5.1f} us   shared {ours:5.1f} us   ratio {ratio:.2f} (aim {AIM}: {verdict})")


def _listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=2 * _CLIENTS)


def _microseconds(listener: socket.socket) -> float:
    """Return the time of one accept() in microseconds."""
    clients = [socket.create_connection(listener.getsockname()) for _ in range(_CLIENTS)]
    began = time.perf_counter()
    connections = [listener.accept()[0] for _ in clients]
    took = time.perf_counter() - began
    for each in (*connections, *clients):
        each.close()
    return took / _CLIENTS * 1e6


if __name__ == "__main__":
    main()
