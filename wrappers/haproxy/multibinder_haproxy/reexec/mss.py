"""Take off the listeners what the ``mss`` of an earlier configuration has left on them."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterable

_MSS = re.compile(rb"\bmss\b")
_DESCRIPTOR = re.compile(rb"\bfd@(\d+)")


def take_off(files: Iterable[bytes], descriptors: Iterable[int]) -> None:
    """Remove the limit of TCP_MAXSEG from each descriptor that has no ``mss`` in ``files``, HAProxy's configuration.

    HAProxy sets the option. When it finds a limit that the configuration does not have, it sets the kernel's default,
    536 (tcp_bind_listener() in src/proto_tcp.c), with which every later client has to send small segments. So this is
    done before HAProxy starts. Listeners that keep their ``mss`` are not without it for a moment.
    """
    keep: set[int] = set()
    for text in files:
        for line in text.splitlines():
            if _MSS.search(line):
                if line.split(maxsplit=1)[:1] == [b"default-bind"]:
                    return  # It is for binds in other lines.
                keep.update(int(number) for number in _DESCRIPTOR.findall(line))
    for descriptor in {*descriptors} - keep:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as listener:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 0)
