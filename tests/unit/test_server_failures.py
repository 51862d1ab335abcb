"""An exception while one client is served costs that client alone."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

from multibinder.binder.answer import Answer, Reply, result
from multibinder.binder.caller import Caller
from multibinder.binder.counters import RequestCounters
from multibinder.binder.loop import Loop
from multibinder.binder.quotas import Limits, Quotas
from multibinder.binder.server import ControlServer
from multibinder.binder.slices import Slices
from tests.support.stores import new_store


def answer(text: bytes, caller: Caller, reply: Reply) -> Answer:
    request = json.loads(text)
    if request["method"] == "fail":
        raise MemoryError
    return result(request["id"], True)


def ask(client: socket.socket, method: str) -> dict[str, object]:
    client.sendall(json.dumps({"jsonrpc": "2.0", "id": "1", "method": method, "params": []}).encode() + b"\n")
    reply: dict[str, object] = json.loads(client.recv(65536))
    return reply


def test_a_client_whose_request_fails_unexpectedly_is_told_and_dropped_and_no_other(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with (
        socket.socket(socket.AF_UNIX) as listening,
        socket.socket(socket.AF_UNIX) as one,
        socket.socket(socket.AF_UNIX) as other,
    ):
        listening.bind(path)
        listening.listen()
        loop = Loop()
        quotas = Quotas(Limits())
        server = ControlServer(
            loop,
            [listening],
            quotas=quotas,
            slices=Slices(loop),
            counters=RequestCounters(),
            answer=answer,
            handoffs=new_store().handoffs,
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            for client in (one, other):
                client.settimeout(20)
                client.connect(path)
                assert ask(client, "hello")["result"] is True
            assert "MemoryError" in str(ask(one, "fail")["error"])
            assert one.recv(1) == b""
            assert ask(other, "hello")["result"] is True
            assert quotas.clients == 1
        finally:
            loop.call_later(0, server.stop)
            other.close()  # wakes the loop
            thread.join(20)
            loop.close()
    assert not thread.is_alive()
