"""A client that binds and releases without pause, and notes in the ledger what was acknowledged."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import warnings
from pathlib import Path

from multibinder import Client, MultibinderError
from tests.chaos.ledger import GONE, OPEN, UNKNOWN, Ledger

OWNER = "customer"


class Customer:
    """A thread with one request every few milliseconds. ``settle`` ends it and releases all that it has bound."""

    def __init__(self, path: Path, host: str, ports: range, seed: int, ledger: Ledger) -> None:
        self._path, self._host, self._ports, self._ledger = path, host, ports, ledger
        self._random = random.Random(seed)
        self._held: dict[int, socket.socket] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="customer")
        self.failed = 0
        self.failure: BaseException | None = None
        self._thread.start()

    def _run(self) -> None:
        try:
            with warnings.catch_warnings(record=True) as cautions:
                warnings.simplefilter("always")
                while not self._stopping.wait(self._random.uniform(0.005, 0.05)):
                    some = sorted(self._random.sample(self._ports, self._random.choice((1, 1, 1, 5, 20))))
                    if self._random.random() < 0.5:
                        self._bind(some, cautions)
                    else:
                        self._release(some)
        except BaseException as error:
            self.failure = error

    def _bind(self, ports: list[int], cautions: list[warnings.WarningMessage]) -> None:
        self._note(ports, UNKNOWN)
        cautions.clear()
        try:
            with Client(self._path) as client:
                sockets = client.bind([(self._host, port) for port in ports], owner=OWNER)
        except MultibinderError:
            self.failed += 1
            return
        for port, sock in zip(ports, sockets, strict=True):
            if port in self._held:
                self._held.pop(port).close()
            # Half of the clients close what they got at once: the port must stay open without a holder, too.
            if self._random.random() < 0.5:
                self._held[port] = sock
            else:
                sock.close()
        # With a caution (the keeper does not answer) a crash may lose it: nothing was promised about that.
        if not cautions:
            self._note(ports, OPEN)

    def _release(self, ports: list[int]) -> None:
        self._note(ports, UNKNOWN)
        try:
            with Client(self._path) as client:
                client.release([(self._host, port) for port in ports], owner=OWNER)
        except MultibinderError:
            self.failed += 1
            return
        for port in ports:
            if port in self._held:
                self._held.pop(port).close()
        self._note(ports, GONE)

    def _note(self, ports: list[int], state: str) -> None:
        for port in ports:
            self._ledger.put(port, state)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def release_all(self) -> None:
        """Release every port that it may have. The thread must have ended, and the binder must answer."""
        for port in self._held:
            self._held[port].close()
        self._held.clear()
        with Client(self._path) as client:
            client.release([(self._host, port) for port in self._ports], owner=OWNER)
        self._note(list(self._ports), GONE)

    def __enter__(self) -> Customer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for sock in self._held.values():
            with contextlib.suppress(OSError):
                sock.close()
