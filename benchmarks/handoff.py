"""Measure handoffs per second, as a ratio to the same exchange without any protocol.

    python -m benchmarks.handoff

The bare exchange is two processes and a Unix socket: the client sends as many bytes as a request of ours has, the
server receives them and sends as many as a reply of ours has, with one descriptor (SCM_RIGHTS), and the client receives
them and closes the descriptor. Ours is the real daemon in its own process and the real client library. Both run with
one connection for all handoffs and with a connection for each, in turns, so that a busy machine slows both: first with
client and server on a core each, then with both on the same core.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import multibinder
from benchmarks import rig
from multibinder.wire.listener_params import ListenerParams
from multibinder.wire.messages import encode_request

#: The aim: our share of the rate of the bare exchange.
AIM = 0.60

_HOST = "127.0.0.1"
_RIGHTS_SIZE = socket.CMSG_SPACE(array.array("i").itemsize)


class Exchange(NamedTuple):
    """A way of handing off. ``handoffs(n)`` performs n of them; ``server`` is the PID of the process that sends."""

    handoffs: Callable[[int], None]
    server: int


def main() -> None:
    parser = argparse.ArgumentParser(description=rig.summary_of(__doc__))
    parser.add_argument("--rounds", type=int, default=25, help="rounds of each kind, in turns (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.2, help="the length of a round (default: %(default)s)")
    arguments = parser.parse_args()

    with contextlib.ExitStack() as running:
        directory = running.enter_context(rig.directory())
        path = str(directory / "control.sock")
        binder = running.enter_context(rig.binder(directory / "control.sock")).pid
        port = _free_port(path)
        sizes = _sizes(path, port)
        pairs = {
            "one connection": (
                running.enter_context(_bare_on_one_connection(*sizes)),
                running.enter_context(_ours_on_one_connection(path, port, binder)),
            ),
            "a connection each": (
                running.enter_context(_bare_with_a_connection_each(str(directory / "bare.sock"), *sizes)),
                _ours_with_a_connection_each(path, port, binder),
            ),
        }
        print(f"request {sizes[0]} bytes, reply {sizes[1]} bytes; {arguments.rounds} rounds of {arguments.seconds:g} s")
        print(f"{'':<38}{'bare/s':>10}{'ours/s':>10}{'ratio':>8}{'  (middle half)':<17}aim {AIM:.2f}")
        for where, cores in _placements().items():
            for name, (bare, ours) in pairs.items():
                for exchange in (bare, ours):
                    os.sched_setaffinity(exchange.server, cores[-1:])
                os.sched_setaffinity(0, cores[:1])
                _report(f"{name}, {where}", bare, ours, arguments.rounds, arguments.seconds)


def _placements() -> dict[str, Sequence[int]]:
    """Return the cores for client and server.

    The scheduler would put such a pair on one core or on two, and change that in the middle of a run. The bare
    exchange is three times as fast on one.
    """
    cores = sorted(os.sched_getaffinity(0))
    return {"a core each": cores[:2], "on one core": cores[:1]} if len(cores) > 1 else {"on one core": cores}


def _report(what: str, bare: Exchange, ours: Exchange, rounds: int, seconds: float) -> None:
    rates = [(_rate(bare, seconds), _rate(ours, seconds)) for _ in range(rounds)]
    low, ratio, high = statistics.quantiles([own / reference for reference, own in rates], n=4)
    print(
        f"{what:<38}{statistics.median(rate for rate, _ in rates):>10,.0f}"
        f"{statistics.median(rate for _, rate in rates):>10,.0f}{ratio:>8.2f}"
        f"  ({low:.2f} to {high:.2f})  {'reached' if ratio >= AIM else 'missed'}",
        flush=True,
    )


def _rate(exchange: Exchange, seconds: float) -> float:
    """Return the handoffs per second, measured for about that many seconds after some that are not counted."""
    exchange.handoffs(50)
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        exchange.handoffs(100)
        done += 100
    return done / elapsed


def _ours_with_a_connection_each(path: str, port: int, binder: int) -> Exchange:
    def handoffs(count: int) -> None:
        for _ in range(count):
            multibinder.bind(_HOST, port, socket_path=path).close()

    return Exchange(handoffs, binder)


@contextlib.contextmanager
def _ours_on_one_connection(path: str, port: int, binder: int) -> Iterator[Exchange]:
    with multibinder.Client(path) as client:

        def handoffs(count: int) -> None:
            for _ in range(count):
                client.bind([(_HOST, port)])[0].close()

        yield Exchange(handoffs, binder)


@contextlib.contextmanager
def _bare_on_one_connection(request_size: int, reply_size: int) -> Iterator[Exchange]:
    near, far = socket.socketpair()
    with near, _process(_bare_server, far, request_size, reply_size) as server:
        far.close()
        request = b"x" * request_size

        def handoffs(count: int) -> None:
            for _ in range(count):
                _bare_handoff(near, request, reply_size)

        yield Exchange(handoffs, server)
        near.close()  # the server reads EOF, and ends


@contextlib.contextmanager
def _bare_with_a_connection_each(path: str, request_size: int, reply_size: int) -> Iterator[Exchange]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(1024)
        with _process(_bare_accepting_server, listening, request_size, reply_size) as server:
            request = b"x" * request_size

            def handoffs(count: int) -> None:
                for _ in range(count):
                    with socket.socket(socket.AF_UNIX) as connection:
                        connection.connect(path)
                        _bare_handoff(connection, request, reply_size)

            yield Exchange(handoffs, server)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(path)  # and send nothing: the server ends


def _bare_handoff(connection: socket.socket, request: bytes, reply_size: int) -> None:
    connection.send(request)
    _, ancillary, _, _ = connection.recvmsg(reply_size, _RIGHTS_SIZE, socket.MSG_CMSG_CLOEXEC)
    [(_, _, rights)] = ancillary
    os.close(int.from_bytes(rights, sys.byteorder))


def _bare_server(connection: socket.socket, request_size: int, reply_size: int) -> None:
    with socket.create_server((_HOST, 0)) as listener:
        reply, rights = _bare_answer(listener, reply_size)
        while connection.recv(request_size):
            connection.sendmsg(reply, rights)


def _bare_accepting_server(listening: socket.socket, request_size: int, reply_size: int) -> None:
    with socket.create_server((_HOST, 0)) as listener:
        reply, rights = _bare_answer(listener, reply_size)
        while True:
            connection, _ = listening.accept()
            with connection:
                if not connection.recv(request_size):
                    return
                connection.sendmsg(reply, rights)


def _bare_answer(
    listener: socket.socket, reply_size: int
) -> tuple[list[bytes], list[tuple[int, int, array.array[int]]]]:
    return [b"x" * reply_size], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener.fileno()]))]


@contextlib.contextmanager
def _process(target: Callable[..., None], *arguments: object) -> Iterator[int]:
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments, daemon=True)
    process.start()
    assert process.pid
    try:
        yield process.pid
        process.join(5)
    finally:
        process.kill()


def _free_port(path: str) -> int:
    listener = multibinder.bind(_HOST, 0, name="bench", socket_path=path)
    port: int = listener.getsockname()[1]
    listener.close()
    return port


def _sizes(path: str, port: int) -> tuple[int, int]:
    """Return the bytes of a request for a handoff, and of its reply."""
    request = encode_request("bind", "1000", [ListenerParams(_HOST, port)])
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.send(request)
        reply, ancillary, _, _ = connection.recvmsg(65536, _RIGHTS_SIZE)
    for _, _, rights in ancillary:
        os.close(int.from_bytes(rights, sys.byteorder))
    return len(request), len(reply)


if __name__ == "__main__":
    main()
