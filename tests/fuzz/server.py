"""Fuzz target: send inputs to a whole binder through its real socket.

An input is a script of what one client does (``inputs.Script``, ``corpus/server``). Its connections are read to their
end afterwards, and every answer is compared with what was sent. Clients that never read stay connected while others
follow. Every few hundred scripts the binder must be as it was at the start: its descriptors, its memory, its log. It
must always answer a well-behaved client.

``python -m tests.fuzz.server --runs 100000``; ``python -m tests.fuzz.server FILE…`` runs these inputs again. If
a failure has no single script as its cause, the file has all scripts since the last successful check.
"""

from __future__ import annotations

import array
import contextlib
import errno
import functools
import itertools
import os
import re
import select
import shutil
import socket
import struct
import tempfile
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from multibinder import RemoteProtocolError
from multibinder.wire import messages
from multibinder.wire.decoder import Decoder
from tests.fuzz import campaign
from tests.fuzz.decoder import read_answer
from tests.fuzz.inputs import Generator, Script, corpus
from tests.support import PATIENCE_S, Binder, RawClient, request

#: Small limits are reached by small inputs.
_REQUEST_BYTES = 65536
_CLIENTS = 40
_OPTIONS = ["--max-listeners", "12", "--max-clients", str(_CLIENTS), "--max-request", str(_REQUEST_BYTES)]
_OPTIONS += ["--request-timeout", "5", "--quiet", "--no-recover"]

#: Memory of the binder for one client: a request and one more chunk, and the answers of one turn. The allocator may not
#: return it to the kernel, so that the binder may keep it once for each possible client.
_GROWTH_KB = _CLIENTS * (_REQUEST_BYTES + 16384 + 65536) // 1024 + 2048

#: How many bytes one script may send, and how many connections it and those before it may have open. With the
#: well-behaved client they stay below the binder's limit; only ``crowd`` exceeds it.
_SENT_BYTES = 3 << 20
_CONNECTIONS = 4
_DEAF = 16
_SETTLE_EVERY = 500

#: The binder has closed the connection, or the kernel allows us no more descriptors in flight (unix(7)).
_UNSENT = (errno.EPIPE, errno.ECONNRESET, errno.ETOOMANYREFS)

#: What separates the scripts in a file of several.
_SEPARATOR = b"\n====\n"
_LOG_LINE = re.compile(r"time=\S+ level=(debug|info|warning|error) event=([a-z-]+)( |$)")
_REFUSED = (messages.LIMIT_REACHED, 10003)  # a limit and a policy: valid refusals for every client


class Connection:
    """A connection with what it sent and received. It never waits for a binder that waits for it."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(str(path))
        self.socket.setblocking(False)
        self.deaf = False
        self._sent = bytearray()
        self._arrived = bytearray()
        self._descriptors = 0
        self._ended = False  # the binder has closed its end

    def send(self, content: bytes, ancillary: Iterable[tuple[int, int, Any]] = ()) -> None:
        rest = memoryview(content)
        deadline = time.monotonic() + PATIENCE_S
        while rest:
            try:
                sent = self.socket.sendmsg([rest[:65536]], ancillary)
            except BlockingIOError:
                if self.deaf or self._ended:
                    return
                assert time.monotonic() < deadline, "the binder neither reads nor closes"
                poll = select.poll()
                poll.register(self.socket, select.POLLIN | select.POLLOUT)
                poll.poll(1000)
                self.read()
            except PermissionError:
                if not ancillary:
                    raise
                ancillary = ()  # since Linux 6.16 the binder need not take descriptors at all (SO_PASSRIGHTS)
                continue
            except OSError as error:
                if error.errno in _UNSENT:
                    return
                raise
            else:
                self._sent += rest[:sent]
                rest = rest[sent:]
                ancillary = ()
                deadline = time.monotonic() + PATIENCE_S

    def read(self) -> None:
        """Read what has arrived."""
        with contextlib.suppress(BlockingIOError):
            while not self._ended:
                try:
                    arrived, rights, _, _ = socket.recv_fds(self.socket, 1 << 16, 253)
                except ConnectionResetError:
                    self._ended = True
                    return
                for descriptor in rights:
                    os.close(descriptor)
                self._descriptors += len(rights)
                self._arrived += arrived
                self._ended = not arrived

    def half_close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def finish(self, crowded: bool) -> None:
        """Stop sending, read to the end, and check every answer."""
        self.half_close()
        while not self._ended:
            assert select.select([self.socket], [], [], PATIENCE_S)[0], "no answer and no end"
            self.read()
        self.socket.close()
        self._check(crowded)

    def _check(self, crowded: bool) -> None:
        lines = bytes(self._arrived).splitlines(keepends=True)
        replies = [read_message(line) for line in lines]
        granted = sum(reply["params"]["from"] == 252 for reply in replies if reply.get("method") == "descriptors")
        replies = [reply for reply in replies if "method" not in reply]
        asked = read_stream(bytes(self._sent))
        goodbye = False
        for number, reply in enumerate(replies):
            assert not goodbye, f"an answer after the last one: {reply}"
            expected = asked[number] if number < len(asked) else Ellipsis
            if reply["id"] is None and expected is not None:
                # The client gets the reason before it is dropped: its bytes were invalid, too many or too slow.
                assert "error" in reply, reply
                assert reply["error"]["code"] == messages.INVALID_REQUEST or reply["error"]["code"] >= 10000, reply
                goodbye = True
            else:
                assert (type(reply["id"]), reply["id"]) == (type(expected), expected), (reply, expected)
        # With too many clients, an idle one is evicted without a message.
        complete = not goodbye and not crowded
        assert not complete or len(replies) == len(asked), f"{len(replies)} answers to {len(asked)} requests"
        if complete:
            promised = sum(
                reply["result"]["descriptors"]
                for reply in replies
                if isinstance(result := reply.get("result"), dict)
                and "descriptors" in result
                and "format" not in result
            )
            assert self._descriptors == promised, f"{self._descriptors} descriptors came, {promised} were announced"
            assert granted <= promised // 252


@functools.lru_cache(maxsize=256)  # a flood is answered with the same line again and again
def read_message(line: bytes) -> dict[str, Any]:
    if line.startswith(b'{"jsonrpc":"2.0","method":"descriptors"'):
        found: dict[str, Any] = msgspec.json.decode(line)
        return found
    return read_answer(line)


def read_stream(sent: bytes) -> list[messages.Id]:
    """Return the id that the answer to each message must have. The fuzz target of the decoder checks these ids."""
    decoder = Decoder(_REQUEST_BYTES)
    decoder.feed(sent)
    found: list[messages.Id] = []
    with contextlib.suppress(RemoteProtocolError):
        while (message := decoder.next_message()) is not None:
            try:
                found.append(messages.decode_request(message).id)
            except msgspec.DecodeError:
                found.append(None)
    return found


class Target:
    """A binder, and its state before the first script. A context manager."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="mb-fuzz-"))
        self._binder = Binder(self._directory, *_OPTIONS)
        self._binder.wait_until_ready()
        self._null = os.open(os.devnull, os.O_RDONLY)
        self._deaf: deque[Connection] = deque()
        self._since: list[bytes] = []
        self._settled_before = False
        self._good = RawClient(self._binder.socket_path)
        self._ask_well(request("hello"))
        self._descriptors = sorted(self._binder.descriptors().values())
        self._memory_kb = 0

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._good.close()
            for connection in self._deaf:
                connection.socket.close()
            os.close(self._null)
        finally:
            self._binder.__exit__(kind, error, trace)
            shutil.rmtree(self._directory)

    def check(self, content: bytes) -> None:
        """Run one script or several, and now and then check that the binder is as it was at the start."""
        for script in content.split(_SEPARATOR):
            self._since.append(script)
            self._play(script)
            if len(self._since) % 50 == 0:
                self._ask_well(request("hello"))
        if len(self._since) >= _SETTLE_EVERY:
            self.settle()

    def settle(self) -> None:
        """Fail unless the binder is as at the start. ``inputs`` of the error has the scripts since the last check."""
        try:
            while self._deaf:
                self._deaf.popleft().socket.close()
            self._release_all()
            self._await_descriptors()
            self._check_memory()
            self._check_log()
        except Exception as error:
            error.inputs = _SEPARATOR.join(self._since)  # type: ignore[attr-defined]
            raise
        self._since.clear()

    def _play(self, script: bytes) -> None:
        open_: list[Connection] = []
        crowd: list[socket.socket] = []
        current: Connection | None = None
        budget = _SENT_BYTES
        try:
            for line in script.splitlines():
                verb, _, text = line.partition(b" ")
                if verb == b"connect" and len(open_) < _CONNECTIONS:
                    current = Connection(self._binder.socket_path)
                    open_.append(current)
                elif verb == b"crowd":
                    for _ in range(min(_number(text), 100 - len(crowd))):
                        crowd.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                        crowd[-1].settimeout(PATIENCE_S)
                        crowd[-1].connect(str(self._binder.socket_path))
                elif verb == b"use" and open_:
                    current = open_[_number(text) % len(open_)]
                elif current is None:
                    continue
                elif verb == b"close":
                    current.socket.close()
                    open_.remove(current)
                    current = None
                elif verb == b"half-close":
                    current.half_close()
                elif verb == b"deaf":
                    current.deaf = True
                elif verb == b"read":
                    select.select([current.socket], [], [], 0.005)
                    current.read()
                else:
                    budget -= self._send(current, verb, text, budget)
            for connection in open_:
                if connection.deaf:
                    self._deaf.append(connection)
                    while len(self._deaf) > _DEAF:
                        self._deaf.popleft().socket.close()
                else:
                    connection.finish(crowded=bool(crowd))
        finally:
            for sock in crowd:
                sock.close()
            for connection in open_:
                if connection not in self._deaf:
                    connection.socket.close()
        if crowd:
            # 64 connections are accepted in one turn of the binder's loop; after a few turns all of them are gone.
            for _ in range(4):
                self._ask_well(request("hello"))

    def _send(self, connection: Connection, verb: bytes, text: bytes, budget: int) -> int:
        """Run a step that sends something, and return the number of bytes."""
        if verb == b"send":
            content = Script.unescape(text)[:budget]
            connection.send(content)
        elif verb == b"times":
            count, _, text = text.partition(b" ")
            once = Script.unescape(text)[:budget]
            content = once * min(_number(count), budget // max(1, len(once)))
            connection.send(content)
        elif verb == b"bytewise":
            content = Script.unescape(text)[: min(budget, 2000)]
            for at in range(len(content)):
                connection.send(content[at : at + 1])
        elif verb == b"rights":
            count, _, text = text.partition(b" ")
            content = Script.unescape(text)[:budget]
            rights = array.array("i", [self._null] * max(1, min(_number(count), 253)))
            connection.send(content, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        elif verb == b"credentials":
            content = Script.unescape(text)[:budget]
            credentials = struct.pack("=iII", os.getpid(), os.getuid(), os.getgid())
            connection.send(content, [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)])
        else:
            content = b""
        return len(content)

    def _ask_well(self, text: bytes) -> dict[str, Any]:
        """Ask as the well-behaved client, on its own connection. A limit may refuse it or close it for a while."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                reply = self._good.ask(text)
            except (AssertionError, OSError):
                assert time.monotonic() < deadline, "the well-behaved client gets no answer"
                self._good.close()
                self._good = RawClient(self._binder.socket_path)
                continue
            if "error" not in reply or reply["error"]["code"] not in _REFUSED:
                return reply
            assert time.monotonic() < deadline, f"the well-behaved client is refused: {reply}"
            time.sleep(0.05)

    def _release_all(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while statuses := self._ask_well(request("list"))["result"]:
            assert time.monotonic() < deadline, f"not released: {statuses}"
            for status in statuses:
                netns = f"cookie:{status['netns']}" if status["netns"] else ""
                for owner in status["owners"] or [""]:
                    element = {"endpoint": status["address"], "owner": owner, "shard": status["shard"], "netns": netns}
                    self._ask_well(request("release", element))

    def _await_descriptors(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while len(found := self._binder.descriptors()) != len(self._descriptors):
            assert time.monotonic() < deadline, f"open in the binder: {found}; in the beginning: {self._descriptors}"
            self._ask_well(request("hello"))

    def _check_memory(self) -> None:
        now_kb = resident_kb(self._binder.pid)
        if not self._settled_before:
            # After the first few hundred scripts all code has run once, and every buffer has reached its size.
            self._settled_before = True
            self._memory_kb = now_kb
        grown_kb = now_kb - self._memory_kb
        assert grown_kb <= _GROWTH_KB, f"the binder has grown by {grown_kb} kB; {_GROWTH_KB} can be explained"

    def _check_log(self) -> None:
        """Check every line of the log, and empty the file, which the binder opened for appending."""
        with open(self._binder.log_path, encoding="utf-8") as log:
            lines = log.read().removesuffix("\n").split("\n")
        for line in filter(None, lines):
            shape = _LOG_LINE.match(line)
            assert shape, f"not a line of the binder: {line!r}"
            assert shape[2] != "internal-error", line
        os.truncate(self._binder.log_path, 0)


def resident_kb(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


def _number(text: bytes) -> int:
    digits = text[:7]
    return int(digits) if digits.isdigit() else 1


def scripts() -> dict[str, bytes]:
    """Return the corpus, and the corpus of the decoder, each sent by a client that does nothing else."""
    sent = {name: b"connect\nsend " + Script.escape(stream) + b"\n" for name, stream in corpus("decoder").items()}
    return {**sent, **corpus("server")}


def main() -> None:
    options = campaign.options("server", engine=False)
    with Target() as target:
        if options.files:
            campaign.again(options.files, target.check, target.settle)
        else:
            seeds = scripts()
            inputs = itertools.chain(seeds.values(), Generator(options.seed, list(seeds.values())).scripts())
            campaign.run(options, "server", itertools.islice(inputs, options.runs), target.check, target.settle)


if __name__ == "__main__":
    main()
