"""Connect to control sockets as another user, from a process with a uid, gid and groups of that user."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from typing import Self

import msgspec

from tests.support import installation
from tests.support.raw_client import Json, RawClient, request
from tests.support.requirements import require
from tests.support.waiting import PATIENCE_S

# Standard input is a socket: the program receives paths from it, and sends back connections to them.
_PROGRAM = """
import array, os, socket
parent = socket.socket(fileno=0)
while path := parent.recv(4096):
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(path)
    except OSError as error:
        parent.send(os.strerror(error.errno).encode())
    else:
        parent.sendmsg([b"connected"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [client.fileno()]))])
    client.close()
"""


class Received(msgspec.Struct, frozen=True, order=True):
    """The address that a received descriptor is bound to, as the kernel reports it.

    ``host`` is the name of a Unix one. ``datagrams``: it is no stream.
    """

    host: str
    port: int
    v6only: bool
    datagrams: bool = False


class Told(msgspec.Struct, frozen=True):
    """The binder's answer to another user, and the descriptors that came with it."""

    reply: Json
    received: list[Received]

    @property
    def refusal(self) -> str:
        message: str = self.reply["error"]["message"]
        return message

    @property
    def addresses(self) -> list[str]:
        return [f"{each.host}:{each.port}" for each in self.received]


def as_user(uid: int, gid: int | None = None, groups: Sequence[int] = ()) -> list[str]:
    """Return the words before a command that run it as this user, without capabilities. Skips without root.

    The command must be one that every user may execute: ``installation.for_everybody()`` has our own.
    """
    require("root", os.geteuid() == 0, "acting as another user needs root")
    setpriv = shutil.which("setpriv")
    require("setpriv", setpriv, "acting as another user needs setpriv (util-linux)")
    supplementary = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
    return [str(setpriv), f"--reuid={uid}", f"--regid={uid if gid is None else gid}", supplementary]


class Stranger:
    """A process of another user that connects to the binder for the test. A context manager; needs root.

    The kernel records the process that called connect(2) (SO_PEERCRED, SO_PEERGROUPS, SO_PEERPIDFD). That is this
    process, also when the test uses the connection afterwards.

    All its connections are closed at the end. ``path`` is the control socket that ``ask`` and ``bind`` connect to.
    ``contained``: it is in a PID namespace of its own, as in a container.
    """

    def __init__(
        self,
        uid: int = 4242,
        path: str | os.PathLike[str] | None = None,
        *,
        gid: int | None = None,
        groups: Sequence[int] = (),
        contained: bool = False,
    ) -> None:
        self.uid = uid
        self._path = path
        self._prefix = as_user(uid, gid, groups)
        if contained:
            self._prefix = ["unshare", "--pid", "--fork", "--kill-child", *self._prefix]
        python = installation.interpreter_for_everybody()
        self._clients = contextlib.ExitStack()
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [*self._prefix, str(python), "-SIc", _PROGRAM], stdin=theirs.fileno(), env={}, cwd="/"
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def connect(self, path: str | os.PathLike[str] | None = None) -> RawClient:
        """Return a connection that this process made. It is closed when the context of this object ends."""
        return self._clients.enter_context(self._connection(path))

    def ask(self, method: str, *params: Json) -> Told:
        """Send one request on a new connection. The descriptors of the answer are examined and closed."""
        with self._connection(None) as client:
            reply = client.ask(request(method, *params))
            return Told(reply, [_received(number) for number in client.descriptors])

    def bind(self, address: str, port: int, **options: object) -> Told:
        return self.ask("bind", {"address": address, "port": port, **options})

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run another command as this user to its end."""
        return subprocess.run(
            [*self._prefix, *command], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    def _connection(self, path: str | os.PathLike[str] | None) -> RawClient:
        path = path or self._path
        assert path is not None, "give the path of a control socket"
        self._ours.send(os.fsencode(path))
        said, rights, _, _ = socket.recv_fds(self._ours, 4096, 1)
        assert rights, f"uid {self.uid} cannot connect: {said.decode()}"
        return RawClient(path, connected=socket.socket(fileno=rights[0]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._clients.close()
        self._ours.close()  # the process reads the end of the stream, and ends
        try:
            self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()
            self._process.wait()


def _received(number: int) -> Received:
    with socket.socket(fileno=os.dup(number)) as got:
        if got.family == socket.AF_UNIX:
            return Received(os.fsdecode(got.getsockname()), 0, False)
        v6only = got.family == socket.AF_INET6 and got.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        host, port = got.getsockname()[:2]
        return Received(host, port, bool(v6only), got.type == socket.SOCK_DGRAM)
