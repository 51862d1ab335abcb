"""Use the control socket without our client library: send bytes to a binder, and serve a client under test."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.waiting import PATIENCE_S

Json = dict[str, Any]


class RawClient:
    """A connection to a control socket that sends and receives bytes. Owns the descriptors that it receives.

    ``connected`` is a connection that exists already. This object owns it from then on.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout_s: float = PATIENCE_S,
        connected: socket.socket | None = None,
    ) -> None:
        self.descriptors: list[int] = []
        self._arrived = b""
        self.socket = connected or socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.settimeout(timeout_s)
            if connected is None:
                self.socket.connect(os.fspath(path))
        except BaseException:
            self.socket.close()
            raise

    def send(self, message: bytes, rights: Sequence[int] = ()) -> None:
        """Send a message, and descriptors with it, in one sendmsg(2)."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", rights))] if rights else []
        sent = self.socket.sendmsg([message], ancillary)
        if sent < len(message):
            self.socket.sendall(message[sent:])

    def receive(self) -> tuple[bytes, list[int]]:
        """Return the bytes and the descriptors of one recvmsg(2). The bytes are empty at the end of the stream."""
        try:
            message, rights, _, _ = socket.recv_fds(self.socket, 1 << 20, 253)
        except ConnectionResetError:
            return b"", []
        self.descriptors += rights
        return message, rights

    def reply(self) -> Json:
        """Return the next message. It must end with a newline."""
        while b"\n" not in self._arrived:
            message, _ = self.receive()
            assert message, f"the connection ended in the middle of a message: {self._arrived!r}"
            self._arrived += message
        line, _, self._arrived = self._arrived.partition(b"\n")
        reply: Json = json.loads(line)
        return reply

    def ask(self, message: bytes) -> Json:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send(message)  # the binder may refuse the message before it has read all of it
        return self.reply()

    def at_end(self) -> bool:
        """Return whether the peer has closed the connection and everything that it sent has been read."""
        assert not self._arrived, self._arrived
        return self.receive() == (b"", [])

    def close(self) -> None:
        self.socket.close()
        while self.descriptors:
            os.close(self.descriptors.pop())

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ask(path: str | os.PathLike[str], message: bytes) -> Json:
    """Send one request on a new connection, and return the reply."""
    with RawClient(path) as client:
        return client.ask(message)


def request(method: str, *params: Json, request_id: object = 1) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "method": method, "id": request_id, "params": params}).encode() + b"\n"


@contextlib.contextmanager
def served_by(path: Path, serve: Callable[[socket.socket], None], *, backlog: int = 16) -> Iterator[None]:
    """Serve a control socket in a thread. ``serve`` gets one connection at a time, as in the Ruby program's server.

    An exception in ``serve`` fails the test at the end of the block.
    """
    failures: list[BaseException] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(os.fspath(path))
        listening.listen(backlog)

        def loop() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return  # shut down below
                with connection:
                    connection.settimeout(PATIENCE_S)
                    try:
                        serve(connection)
                    except (BrokenPipeError, ConnectionResetError):
                        continue
                    except BaseException as error:
                        failures.append(error)

        thread = threading.Thread(target=loop, name=f"server at {path}")
        thread.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the thread of the server does not end"
    if failures:
        raise failures[0]
