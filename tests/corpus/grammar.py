"""Bind lines by a grammar, with the shapes that HAProxy's own regression tests and public configurations have.

Each configuration has some lines, on ports that no other line of it has.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from tests.corpus.shapes import HEAD, Shape, answering, one

_HOSTS = (
    "127.0.0.1",
    "*",
    "",
    "0.0.0.0",
    "::",
    "[::1]",
    "::1",
    "[::]",
    "ipv4@127.0.0.2",
    "ipv6@::1",
    "tcp6@[::1]",
    "tcp4@",
)
_QUOTES = ("{}", "{}", "{}", '"{}"', "'{}'", '"${{PREFIX}}{}"')
_OPTIONS = (
    *("name n{}", "maxconn 20", "nice -5", "mss 1400", "defer-accept", "tfo", "tcp-ut 7s", "backlog 99"),
    *(
        "interface lo",
        "accept-proxy",
        "severity-output string",
        "level user",
        "process 1/1",
        "thread 1",
        "v6only",
        "v4v6",
    ),
    *("ssl crt @DIR@/site.pem", "ssl crt @DIR@/site.pem alpn h2,http/1.1 no-sslv3 strict-sni", "proto h2"),
)


def grammar(seed: int, lines: int = 8) -> Shape:
    """Return the configuration of a seed."""
    chance = random.Random(seed)
    ports = itertools.count(8000)
    binds = [_bind(chance, ports) for _ in range(lines)]
    return one(f"grammar-{seed}", HEAD.replace("maxconn 300", "maxconn 300\n    nbthread 2") + answering(*binds))


def _bind(chance: random.Random, ports: Iterator[int]) -> str:
    elements = [_element(chance, ports) for _ in range(chance.choice((1, 1, 1, 2, 3)))]
    address = chance.choice(_QUOTES).format(",".join(elements))
    options = chance.sample(_OPTIONS, chance.choice((0, 0, 1, 2, 3)))
    number = next(ports)
    gap = chance.choice((" ", "  ", "\t"))
    return gap.join([address, *(option.format(number) for option in options)]) + chance.choice(("", "", " # comment"))


def _element(chance: random.Random, ports: Iterator[int]) -> str:
    port = next(ports)
    kind = chance.random()
    if kind < 0.08:
        return chance.choice(("unix@@DIR@/{}.sock", "@DIR@/{}.sock", "abns@corpus-{}")).format(port)
    if kind < 0.2:
        last = [next(ports) for _ in range(2)][-1]
        return f"{chance.choice(_HOSTS)}:{port}-{last}"
    return f"{chance.choice(_HOSTS)}:{port}"
