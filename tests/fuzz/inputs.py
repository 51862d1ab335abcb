"""Inputs come from the corpus, and from a generator that makes requests and mutations of them.

The generator is seeded and needs nothing but Python, so an input can be made again from its seed and number anywhere.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"

#: Valid parts of requests.
_METHODS = [
    b'"hello"',
    b'"bind"',
    b'"bind"',
    b'"bind"',
    b'"check"',
    b'"list"',
    b'"release"',
    b'"release"',
    b'"status"',
    b'"adopt"',
]
_ADDRESSES = [b'"127.9.9.9"', b'"127.9.9.9"', b'"127.9.9.8"', b'"::1"', b'"::"', b'"0.0.0.0"', b'"192.0.2.1"']
#: No other test has these ports: a bind of 0.0.0.0 takes one from every address of the host.
_PORTS = [b"0", b"0", b"18471", b"18472", b"18473", b"65535"]
_OWNERS = [b'"a"', b'"haproxy@web"', b'""']
_IDS = [b"1", b'"1"', b'"5f0c7a0e-6a0e-4bb0-9d4e-0e0f5b1f7c3a"', b"2.5", b"null"]
_KEYS = [b'"jsonrpc"', b'"method"', b'"id"', b'"params"', b'"id"', b'"METHOD"']
_FIELDS = [
    b'"address"', b'"port"', b'"owner"', b'"backlog"', b'"v6only"', b'"name"', b'"bakclog"', b'"endpoint"',
    b'"shard"', b'"shards"', b'"netns"', b'"freebind"', b'"transparent"', b'"interface"', b'"mark"', b'"mss"',
    b'"defer_accept"', b'"fastopen"', b'"user_timeout"', b'"keepalive_idle"', b'"tos"', b'"rcvbuf"', b'"sndbuf"',
    b'"mode"', b'"user"', b'"group"',
]  # fmt: skip
#: Addresses of other kinds, good ones and others. Those that can be bound are of this process alone.
_ENDPOINTS = [
    b'"udp@127.9.9.9:18471"', b'"udp@127.9.9.9:0"', b'"udp@[::1]:0"', b'"quic@127.9.9.9:0"', b'"mptcp@127.9.9.9:0"',
    b'"mptcp@127.9.9.9:18472"', b'"abns@multibinder-fuzz"', b'"abnsz@multibinder-fuzz"', b'"vsock@*:0"',
    b'"vsock@*:18473"', b'"unix@/proc/multibinder-fuzz"', b'"uxdg@/proc/multibinder-fuzz"',
    b'"unixseq@/proc/self/fd/1"', b'"unix@relative"',
    b'"unix@/a/../b"', b'"unix@/' + b"x" * 120 + b'"', b'"fd@3"', b'"udp@"', b'"vsock@:1"', b'"vsock@4294967296:1"',
    b'"abns@"', b'"tcp@127.9.9.9:0"', b'"127.9.9.9:0"', b'"/proc/x"', b'"sockpair@1"', b'"udp@localhost:1"',
]  # fmt: skip
#: Values of options, shards and namespaces that mostly make sense.
_OPTIONS = [
    (b'"shard"', [b"0", b"1", b"2", b"255", b"256", b"-1"]),
    (b'"shards"', [b"1", b"2", b"4", b"0"]),
    (
        b'"netns"',
        [b'""', b'"1"', b'"cookie:1"', b'"/proc/self/ns/net"', b'"/proc/self/ns/mnt"', b'"nowhere"', b'"../x"'],
    ),
    (b'"backlog"', [b"1", b"100"]),
    (b'"rcvbuf"', [b"4096", b"100000", b"1073741823"]),
    (b'"mss"', [b"1000", b"88", b"65495"]),
    (b'"mode"', [b"384", b"511", b"512"]),
    (b'"interface"', [b'"lo"', b'"nowhere0"', b'"a/b"']),
    (b'"mark"', [b"1", b"4294967295"]),
    (b'"freebind"', [b"true", b"false"]),
    (b'"tos"', [b"16", b"255", b"256"]),
]
_STRANGE_KEYS = [b'"\\u0069d"', b'"\\ud800"', b'"\xff"', b'""']
_ENDS = [b"\n", b"\n", b"\n", b"", b"", b"\r\n", b" ", b"\n\n \n", b"\x00", b"\x0b", b"}", b",", b"\xef\xbb\xbf", b"\\"]

#: JSON, or nearly, that has broken some parser. None of it has a newline, which would end a message.
_NUMBERS = [
    b"0", b"-0", b"-1", b"1.0", b"1e3", b"65536", b"70000", b"2147483648", b"9007199254740993", b"18446744073709551615",
    b"18446744073709551616", b"-9223372036854775809", b"1" + b"0" * 40, b"7" * 4300, b"7" * 4301, b"7" * 5000,
    b"-" + b"7" * 5000, b"1e308", b"1e999", b"-1e999", b"1e-999", b"0.1" + b"7" * 400, b"NaN", b"Infinity",
    b"-Infinity", b"0x10", b"01", b".5", b"1.", b"+1", b"1_000",
]  # fmt: skip
_STRINGS = [
    b'""', b'"', b'"\\', b'"\\u', b'"\\u12"', b'"\\ud800"', b'"\\udc00"', b'"\\ud83d\\ude00"', b'"\\udc00\\ud800"',
    b'"\\u0000"', b'"\\n"', b'"\\r\\u2028\\u0085"', b'"\\x41"', b'"\x00"', b'"\x1f"', b'"\x7f"', b'"\xff\xfe"',
    b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"\xf4\x90\x80\x80"', b'"\xf0\x9f\x98"', b'"\xf0\x9f\x98\x80"',
    b'"\xef\xbb\xbf"', b'"' + b"x" * 129 + b'"', b'"' + b"x" * 3000 + b'"', b'"' + b"\x7f" * 3000 + b'"',
    b'"localhost"', b'"*"', b'"fe80::1%lo"', b'"1.2.3.300"', b'"0127.0.0.1"', b'"::ffff:127.0.0.1"', b'"127.1"',
    b'"127.0.0.1\\u0000.evil"', b'"level=error event=forged"', b'"../../etc/passwd"', b'"<4>"',
]  # fmt: skip
_OTHERS = [
    b"null", b"true", b"false", b"tru", b"nul", b"undefined", b"[]", b"{}", b"[[]]", b"[1]", b"[{}]", b"[null]",
    b"[" * 50, b"[" * 2000 + b"]" * 2000, b'{"a":' * 1200 + b"1" + b"}" * 1200, b'{"":{"":{}}}', b'{"a":1,"a":2}',
    b"/* */1", b"1//", b"'a'", b"\xef\xbb\xbf1", b"\x00", b" ", b"\t\r\x0b\x0c",
]  # fmt: skip
HOSTILE = [*_NUMBERS, *_STRINGS, *_OTHERS]
#: Pieces that a mutation inserts. They have a meaning in JSON.
TOKENS = [
    b"{", b"}", b"[", b"]", b'"', b"\\", b":", b",", b"\n", b"\r", b" ", b"\x00", b"\xff", b"\\u", b"\\ud800",
    b"\\u0000", b"e999", b"-", b".", b"}{", b'"}', b'{"', b"\n{", b"}\n", *_KEYS, *_FIELDS, *_STRANGE_KEYS, *_METHODS,
    *(content for content in HOSTILE if len(content) < 64),
]  # fmt: skip


class Script:
    """The steps of one client, one on each line; ``corpus/server`` shows every kind of step.

    Bytes stand as they are, but for ``\\n``, ``\\\\`` and ``\\xNN``.
    """

    _ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.|$)", re.DOTALL)
    _UNSAFE = re.compile(rb"[\x00-\x1f\\\x7f-\xff]")

    @classmethod
    def escape(cls, content: bytes) -> bytes:
        special = {b"\n": b"\\n", b"\\": b"\\\\"}
        return cls._UNSAFE.sub(lambda found: special.get(found[0]) or b"\\x%02x" % found[0][0], content)

    @classmethod
    def unescape(cls, text: bytes) -> bytes:
        """Invert ``escape``. It never fails: text that ``escape`` cannot produce has a meaning too."""
        special = {b"n": b"\n"}

        def meaning(found: re.Match[bytes]) -> bytes:
            escape = found[1]
            return bytes([int(escape[1:], 16)]) if len(escape) == 3 else special.get(escape, escape)

        return cls._ESCAPE.sub(meaning, text)


def corpus(target: str) -> dict[str, bytes]:
    """Return the inputs in the repository by name."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / target).iterdir())}


class Generator:
    """An endless generator of inputs, the same for the same seed and corpus."""

    def __init__(self, seed: int | str, seeds: Sequence[bytes]) -> None:
        self._random = random.Random(seed)
        self._seeds = list(seeds)

    def streams(self) -> Iterator[bytes]:
        """Yield streams that a client may send on one connection."""
        while True:
            yield self.mutated(self._choice(self._seeds)) if self._chance(0.3) else self.stream()

    def scripts(self) -> Iterator[bytes]:
        """Yield scripts of one client; ``Script`` describes the format."""
        while True:
            yield self._mutated_script() if self._chance(0.3) else b"".join(self._steps())

    def stream(self) -> bytes:
        pieces: list[bytes] = []
        for _ in range(self._random.choice((1, 1, 1, 2, 3, 5))):
            pieces += (self.request(), self._choice(_ENDS))
        whole = b"".join(pieces)
        return self.mutated(whole) if self._chance(0.3) else whole

    def request(self) -> bytes:
        """Return a request. Most are mutated in one place only, so that the rest is read."""
        fields = [(b'"jsonrpc"', b'"2.0"'), (b'"method"', self._choice(_METHODS)), (b'"id"', self._choice(_IDS))]
        fields.append((b'"params"', self._params()))
        fields = [field for field in fields if not self._chance(0.04)]
        if self._chance(0.25):
            fields.insert(
                self._random.randrange(len(fields) + 1), (self._choice([*_KEYS, *_STRANGE_KEYS]), self._choice(HOSTILE))
            )
        if self._chance(0.1):
            self._random.shuffle(fields)
        return b"{" + b",".join(b"%b:%b" % field for field in fields) + b"}"

    def mutated(self, content: bytes) -> bytes:
        whole = bytearray(content)
        for _ in range(self._random.choice((1, 1, 2, 4))):
            at = self._random.randrange(len(whole) + 1)
            kind = self._random.randrange(6)
            if kind == 0:
                whole[at:at] = self._choice(TOKENS)
            elif kind == 1 and at < len(whole):
                whole[at] ^= 1 << self._random.randrange(8)
            elif kind == 2:
                del whole[at : at + self._random.choice((1, 1, 4, 64))]
            elif kind == 3:
                whole[at:at] = whole[at : at + self._random.choice((1, 8, 64))] * self._random.choice((1, 2, 30))
            elif kind == 4:
                del whole[at:]
            else:
                whole[at : at + 1] = bytes([self._random.randrange(256)])
        return bytes(whole)

    def pieces(self, content: bytes) -> list[bytes]:
        """Yield the same bytes, cut at random places."""
        count = self._random.choice((1, 2, 5))
        cuts = sorted(self._random.randrange(len(content) + 1) for _ in range(count))
        return [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]

    def _params(self) -> bytes:
        if self._chance(0.1):
            return self._choice(HOSTILE)
        elements = [self._element() for _ in range(self._random.choice((1, 1, 1, 2, 4)))]
        return b"[" + b",".join(elements) + b"]"

    def _element(self) -> bytes:
        if self._chance(0.3):
            fields = [(b'"endpoint"', self._choice(_ENDPOINTS))]
        else:
            fields = [(b'"address"', self._choice(_ADDRESSES)), (b'"port"', self._choice(_PORTS))]
        while self._chance(0.25):
            name, values = _OPTIONS[self._random.randrange(len(_OPTIONS))]
            fields.append((name, self._choice(values)))
        if self._chance(0.5):
            fields.append((b'"owner"', self._choice(_OWNERS)))
        if self._chance(0.3):
            fields.append((self._choice([*_FIELDS, *_STRANGE_KEYS]), self._choice(HOSTILE)))
        return b"{" + b",".join(b"%b:%b" % field for field in fields) + b"}"

    def _steps(self) -> Iterator[bytes]:
        yield b"connect\n"
        for _ in range(self._random.choice((1, 1, 2, 3, 6))):
            kind = self._random.randrange(16)
            if kind == 0:
                yield self._choice([b"connect\n", b"close\n", b"half-close\n", b"read\n", b"deaf\n", b"crowd 20\n"])
            elif kind == 1:
                yield b"use %d\n" % self._random.randrange(4)
            elif kind == 2:
                count = self._choice_number((1, 2, 50, 252, 253))
                yield b"rights %d %b\n" % (count, Script.escape(self.stream()))
            elif kind == 3:
                yield b"credentials %b\n" % Script.escape(self.stream())
            elif kind == 4:
                yield b"bytewise %b\n" % Script.escape(self.request()[:300])
            elif kind == 5:
                yield b"times %d %b\n" % (
                    self._choice_number((2, 20, 60)),
                    Script.escape(self.request()[:200] + b"\n"),
                )
            elif kind <= 8:
                for piece in self.pieces(self.stream()):
                    yield b"send %b\n" % Script.escape(piece)
            else:
                yield b"send %b\n" % Script.escape(self.stream())
        if self._chance(0.1):
            yield self._choice([b"deaf\n", b"close\n", b"half-close\n"])

    def _mutated_script(self) -> bytes:
        lines = self._choice(self._seeds).splitlines(keepends=True)
        other = self._choice(self._seeds).splitlines(keepends=True)
        for _ in range(self._random.choice((1, 2, 3))):
            at = self._random.randrange(len(lines) + 1)
            kind = self._random.randrange(4)
            if kind == 0:
                del lines[at : at + 1]
            elif kind == 1:
                lines[at:at] = other[self._random.randrange(len(other)) :][:2]
            elif kind == 2 and at < len(lines):
                verb, _, text = lines[at].rstrip(b"\n").partition(b" ")
                lines[at] = verb + b" " + Script.escape(self.mutated(Script.unescape(text))) + b"\n"
            else:
                lines[at:at] = list(self._steps())[1:2]
        return b"".join(lines if self._chance(0.02) else map(self._shortened, lines))

    def _shortened(self, line: bytes) -> bytes:
        """Shorten most floods: in the same time, a hundred short scripts find more."""
        verb, _, text = line.partition(b" ")
        count, space, text = text.partition(b" ")
        if verb != b"times" or len(count) < 3:
            return line
        return b"times %d%b%b" % (self._choice_number((2, 20, 60)), space, text)

    def _choice(self, options: Sequence[bytes]) -> bytes:
        return options[int(self._random.random() * len(options))]

    def _choice_number(self, options: Sequence[int]) -> int:
        return options[int(self._random.random() * len(options))]

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability
