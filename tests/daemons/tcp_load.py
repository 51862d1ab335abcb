"""Make an open-loop load of questions over TCP, each on a connection of its own, and count those without an answer."""

from __future__ import annotations

import errno
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from typing import Self

from tests.daemons.udp_load import Question
from tests.support.load import Phase, Result

_LENGTH = struct.Struct("!H")  # RFC 1035, section 4.2.2


class TcpQuestionLoad:
    """Connections of a thread of this process, while the block runs. A question and its answer begin with a length."""

    def __init__(self, target: tuple[str, int], *, rate: float, timeout_s: float, question: Question) -> None:
        self._target, self._rate, self._timeout_s, self._question = target, rate, timeout_s, question
        self._selector = selectors.DefaultSelector()
        self._asked: dict[socket.socket, tuple[int, float]] = {}
        self._tried = self._answered = 0
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
        late = len(self._asked)
        causes = dict(self._causes) | ({"no reply": late} if late else {})
        refused, reset = (self._causes[errno.errorcode[number]] for number in (errno.ECONNREFUSED, errno.ECONNRESET))
        other = self._tried - self._answered - late - refused - reset
        # fmt: off
        total = Phase(
            "all", self._tried, self._answered, refused, reset, late, 0, other, 0, self._longest_wait_s,
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
                    self._connect(now)
                wait_s = max(0.0, self._began + self._tried / self._rate - now)
            for key, events in self._selector.select(wait_s):
                assert isinstance(key.fileobj, socket.socket)
                self._serve(key.fileobj, events)

    def _connect(self, now: float) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        self._asked[sock] = self._tried, now
        self._tried += 1
        sock.connect_ex(self._target)
        self._selector.register(sock, selectors.EVENT_WRITE)

    def _serve(self, sock: socket.socket, events: int) -> None:
        number, asked = self._asked[sock]
        try:
            if failed := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._end(sock, errno.errorcode.get(failed, "unknown"))
            elif events & selectors.EVENT_WRITE:
                question = self._question.ask(number)
                sock.send(_LENGTH.pack(len(question)) + question)
                self._selector.modify(sock, selectors.EVENT_READ)
            elif answer := sock.recv(65536)[_LENGTH.size :]:
                assert self._question.number_of(answer) == number % (1 << 16)
                self._answered += 1
                self._longest_wait_s = max(self._longest_wait_s, time.monotonic() - asked)
                self._tellers[self._question.teller(answer)] += 1
                self._end(sock)
            else:
                self._end(sock, "EOF")
        except OSError as error:
            self._end(sock, errno.errorcode.get(error.errno or 0, "unknown"))

    def _end(self, sock: socket.socket, cause: str = "") -> None:
        del self._asked[sock]
        self._selector.unregister(sock)
        sock.close()
        if cause:
            self._causes[cause] += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._timeout_s = 0.0
        self._thread.join()
        for sock in self._asked:
            sock.close()
        self._selector.close()
