"""A client of the control socket that is another user: a process of its own that is told what to send."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import msgspec

from tests.support import PATIENCE_S, Json, request, require

_PROGRAM = """
import array, encodings.idna, json, os, socket, sys
uid, gid, groups = json.loads(sys.argv[1])
os.setgroups(groups)
os.setgid(gid)
os.setuid(uid)
for line in sys.stdin:
    path, message, timeout = json.loads(line)
    reply, received = b"", []
    try:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(timeout)
            control.connect(path)
            control.sendall(message.encode())
            while not reply.endswith(b"\\n"):
                chunk, rights, _, _ = socket.recv_fds(control, 65536, 253)
                for descriptor in rights:
                    with socket.socket(fileno=descriptor) as got:
                        only = got.family == socket.AF_INET6 and got.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
                        received.append([*got.getsockname()[:2], bool(only)])
                if not chunk:
                    break
                reply += chunk
        answer = {"reply": json.loads(reply) if reply else {}, "received": received}
    except OSError as error:
        answer = {"reply": {}, "received": received, "error": str(error)}
    print(json.dumps(answer), flush=True)
"""


class Received(msgspec.Struct, frozen=True, order=True):
    """A descriptor that arrived: what the kernel says that it is bound to."""

    host: str
    port: int
    v6only: bool


class Told(msgspec.Struct, frozen=True):
    """The binder's answer to a stranger, and what came with it."""

    reply: Json
    received: list[Received]

    @property
    def refusal(self) -> str:
        message: str = self.reply["error"]["message"]
        return message

    @property
    def addresses(self) -> list[str]:
        return [f"{each.host}:{each.port}" for each in self.received]


class Stranger:
    """A process of that uid, gid and those groups. Each request goes over a connection of its own."""

    def __init__(self, path: Path, uid: int = 4242, gid: int | None = None, groups: tuple[int, ...] = ()) -> None:
        require("root", os.geteuid() == 0, "a second user needs root")
        self.uid = uid
        self._path = path
        who = json.dumps([uid, uid if gid is None else gid, groups])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, who], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, method: str, *params: Json) -> Told:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        message = request(method, *params).decode()
        self._process.stdin.write(json.dumps([str(self._path), message, PATIENCE_S]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert "error" not in answer, answer
        return Told(answer["reply"], [Received(*each) for each in answer["received"]])

    def bind(self, address: str, port: int, **options: object) -> Told:
        return self.ask("bind", {"address": address, "port": port, **options})

    def __enter__(self) -> Stranger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()
