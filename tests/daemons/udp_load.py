"""Make an open-loop load of datagrams at a fixed rate, and count those that get no answer."""

from __future__ import annotations

import errno
import select
import socket
import struct
import threading
import time
from collections import Counter
from typing import Protocol, Self

from tests.support.load import Phase, Result


class Question(Protocol):
    """What a datagram of the load is."""

    def ask(self, number: int) -> bytes: ...

    def number_of(self, answer: bytes) -> int:
        """Return the number that ``ask`` got, less what it does not keep."""
        ...

    def teller(self, answer: bytes) -> str:
        """Return what the answer tells about the process that gave it, such as its PID."""
        ...


class Echo:
    """The server sends each datagram back, with its PID as a decimal number behind it."""

    def ask(self, number: int) -> bytes:
        return struct.pack("!Q", number)

    def number_of(self, answer: bytes) -> int:
        return int(struct.unpack("!Q", answer[:8])[0])

    def teller(self, answer: bytes) -> str:
        return answer[8:].decode()


class UdpLoad:
    """Datagrams of a thread of this process, while the block runs.

    The socket is connected, because only such a socket is told of refusals.
    """

    def __init__(self, target: tuple[str, int], *, rate: float, timeout_s: float, question: Question) -> None:
        self._rate, self._timeout_s, self._question = rate, timeout_s, question
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._sock.connect(target)
        self._sock.setblocking(False)
        self._asked: dict[int, float] = {}
        self._tried = 0
        self._causes: Counter[str] = Counter()
        self._tellers: Counter[str] = Counter()
        self._longest_wait_s = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._began = 0.0

    def stop(self) -> Result:
        """Stop asking, wait for the answers that are missing, and return the result."""
        self._stopping.set()
        self._thread.join()
        lost = len(self._asked)
        causes = dict(self._causes) | ({"no reply": lost} if lost else {})
        refused = self._causes[errno.errorcode[errno.ECONNREFUSED]]
        # fmt: off
        total = Phase(
            "all", self._tried, self._tried - lost - refused, refused, 0, lost, 0, 0, 0, self._longest_wait_s,
            0.0, 0.0, 0.0, causes, dict(self._tellers),
        )
        # fmt: on
        return Result(total, (total,), time.monotonic() - self._began, 0.0)

    def _run(self) -> None:
        self._began = time.monotonic()
        until = 0.0
        while True:
            now = time.monotonic()
            if self._stopping.is_set():
                until = until or now + self._timeout_s
                if not self._asked or now > until:
                    return
                wait_s = 0.05
            else:
                while self._began + self._tried / self._rate <= now:
                    self._ask(now)
                wait_s = max(0.0, self._began + self._tried / self._rate - now)
            if select.select([self._sock], [], [], wait_s)[0]:
                self._read()

    def _ask(self, now: float) -> None:
        number = self._tried
        self._tried += 1
        try:
            self._sock.send(self._question.ask(number))
        except OSError as error:  # of an earlier datagram: it was refused, or this one is not sent
            self._causes[errno.errorcode.get(error.errno or 0, "unknown")] += 1
            return
        self._asked[number % (1 << 16)] = now  # a question of DNS has a number of 16 bits

    def _read(self) -> None:
        while True:
            try:
                answer = self._sock.recv(65536)
            except BlockingIOError:
                return
            except OSError as error:
                self._causes[errno.errorcode.get(error.errno or 0, "unknown")] += 1
                continue
            asked = self._asked.pop(self._question.number_of(answer) % (1 << 16), None)
            if asked is not None:
                self._longest_wait_s = max(self._longest_wait_s, time.monotonic() - asked)
                self._tellers[self._question.teller(answer)] += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._asked.clear()
        self._thread.join()
        self._sock.close()
