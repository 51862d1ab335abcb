"""The check that an HTTP server answers."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from multibinder.kernel.process import printable
from multibinder.launch.errors import UsageError
from multibinder.launch.run.readiness.acceptor import Acceptor
from multibinder.launch.run.readiness.check import ObservedCopy
from multibinder.launch.run.readiness.pace import Pace
from multibinder.launch.run.readiness.stream import Late, Plain, Stream
from multibinder.launch.run.readiness.target import Target

if TYPE_CHECKING:
    from multibinder.launch.run.readiness.tls import Tls

#: An answer must begin within this time. Then the request is sent again, on another connection.
_ANSWER_S = 10.0
#: The status of an answer that counts, as Kubernetes has it: a redirection is an answer of a server that works.
_GOOD = range(200, 400)
_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"(https?)(\+unix)?://([^/?#\s]+)((?:[/?][^#\s]*)?)(?:#.*)?")
_STATUS = re.compile(rb"HTTP/[0-9.]+ ([0-9]{3})(?=[ \r\n])")
#: The most bytes before the status: provisional answers, such as 103, may come before it.
_LARGEST_HEAD = 65536


class Http:
    """A GET request is answered with a status of 200 to 399.

    ``url`` has a numeric host, ``localhost``, ``{ready}`` or the ``{NAME}`` of a bind; with ``http+unix://`` a path
    in percent-encoding. The constructor raises UsageError. One for https imports ssl.
    """

    def __init__(self, url: str) -> None:
        parts = _URL.fullmatch(url)
        if not parts or not url.isascii():
            raise UsageError(
                f"{url!r} is no URL of a check: write http://HOST:PORT/PATH, or {{ready}} or the {{NAME}} of a bind "
                "instead of HOST:PORT"
            )
        self._url = url
        self._scheme, is_unix, authority, self._path = parts.groups()
        self._target = Target(_decoded(authority) if is_unix else authority, _PORTS[self._scheme])
        self._acceptor = Acceptor(self._target)
        self._last = ""
        if self._scheme == "https":
            _tls(None)

    @property
    def last(self) -> str:
        return self._last or self._acceptor.last

    def describe(self) -> str:
        return f"GET {self._url}"

    async def wait(self, copy: ObservedCopy) -> str:
        pace = Pace()
        while not await self._try(copy):
            await pace.next()
        return f"GET {self._url}: {self._last}"

    async def _try(self, copy: ObservedCopy) -> bool:
        place = self._target.place(copy)
        host = place.host if place is not None else "localhost"
        path = self._path if self._path.startswith("/") else f"/{self._path}"
        request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: multibinder-run\r\nAccept: */*\r\n"
            "Connection: close\r\n\r\n"
        ).encode()
        tls = _tls(host) if self._scheme == "https" else None
        reached = await self._acceptor.connect(copy, tls.hello if tls else request, answer_suffices=True)
        if reached is None:
            self._last = self._acceptor.last
            return False
        sock, sent = reached
        self._last = self._last or "no answer yet"
        with sock:
            below = Plain(sock, time.monotonic() + _ANSWER_S)
            try:
                if tls is not None:
                    await tls.begin(below, len(sent))
                    await tls.send(request)
                else:
                    await below.send(request[len(sent) :])
                status = await self._status(tls or below)
            except Late:
                self._last = f"no answer within {_ANSWER_S:g} s"
                return False
            except OSError as error:  # also ssl.SSLError
                self._last = f"the connection broke: {error.strerror or error}"
                return False
        return status in _GOOD

    async def _status(self, stream: Stream) -> int:
        """Return the status of the answer; 0 if there is none. ``_last`` says what came."""
        text = b""
        while len(text) < _LARGEST_HEAD:
            more = await stream.receive()
            text += more
            while found := _STATUS.match(text):
                status = int(found[1])
                if status >= 200:
                    self._last = f"it answered {status}"
                    return status
                _, end, rest = text.partition(b"\r\n\r\n")
                if not end:
                    break
                text = rest
            if not more:
                break
            if b"\n" in text and not _STATUS.match(text):
                break
        line = printable(text.split(b"\n")[0][:60].decode(errors="replace").rstrip("\r"))
        self._last = f"it answered {line!r}, which is no HTTP" if text else "it closed the connection without an answer"
        return 0


def _tls(host: str | None) -> Tls:
    try:
        # It takes 4 MB, and most instances need none. A reload that fails here changes nothing.
        from multibinder.launch.run.readiness.tls import Tls
    except ImportError as error:
        raise UsageError(f"https cannot be checked: Python's ssl cannot be loaded: {error}") from error
    name = host.partition(":")[0] if host and host[0].isalpha() else None
    return Tls(name)


def _decoded(text: str) -> str:
    return re.sub("%([0-9A-Fa-f]{2})", lambda found: chr(int(found[1], 16)), text)
