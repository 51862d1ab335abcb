"""The options of a bind line of HAProxy's."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from multibinder_haproxy.config.lines import Word

#: The options of a bind line that have an argument, in HAProxy 2.4 to 3.5 (struct bind_kw in its source). All others
#: have none.
_WITH_ARGUMENT = frozenset(
    [
        *("accept-netscaler-cip", "alpn", "backlog", "ca-file", "ca-ignore-err", "ca-sign-file", "ca-sign-pass"),
        *("ca-verify-file", "cc", "ciphers", "ciphersuites", "client-sigalgs", "crl-file", "crt", "crt-ignore-err"),
        *("crt-list", "curves", "default-crt", "ecdhe", "ech", "expose-fd", "gid", "group", "guid-prefix", "id"),
        *("idle-ping", "interface", "ktls", "label", "level", "maxconn", "mode", "mss", "name", "namespace", "nbconn"),
        *("nice", "npn", "process", "proto", "quic-cc-algo", "quic-socket", "severity-output", "shards", "sigalgs"),
        *("ssl-max-ver", "ssl-min-ver", "tcp-md5sig", "tcp-ss", "tcp-ut", "thread", "tls-ticket-keys", "uid", "user"),
        "verify",
    ]
)


class BindOption(msgspec.Struct, frozen=True):
    """An option of a bind line. ``argument`` is empty if it has none; ``words`` are both, with their places."""

    name: str
    argument: str = ""
    words: tuple[Word, ...] = ()


def options_of(words: Iterable[Word]) -> list[BindOption]:
    """Return the options that the words after the address are. One that takes an argument has the next word."""
    options = []
    rest = iter(words)
    for word in rest:
        argument = next(rest, None) if word in _WITH_ARGUMENT else None
        both = (word,) if argument is None else (word, argument)
        options.append(BindOption(str(word), str(argument or ""), both))
    return options
