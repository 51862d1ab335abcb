"""Read the kernel's table of the Unix sockets of a network namespace (proc_net_unix), which needs no privilege."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_ACCEPTS = 0x10000  # __SO_ACCEPTCON
_LINE = re.compile(r"\S+: \S{8} \S{8} (?P<flags>\S{8}) (?P<type>\S{4}) \S\S +(?P<inode>[0-9]+)(?: (?P<name>.*))?")


class Row(NamedTuple):
    """A socket: its inode, its type, whether it listens, and the name that it was bound to.

    An abstract name has an ``@`` for each NUL. The name is empty for a socket that is not bound.
    """

    inode: int
    type: int
    is_listening: bool
    name: str


def inodes_named(name: str) -> frozenset[int]:
    """Return the inodes of the sockets that were bound to a name, as ``Row.name`` shows it. Raises OSError."""
    return frozenset(row.inode for row in rows() if row.name == name)


def rows() -> Iterator[Row]:
    """Yield the rows of the table, of the network namespace of this thread. Raises OSError.

    A row whose name has a line feed shows the first part of the name.
    """
    with open("/proc/thread-self/net/unix", errors="surrogateescape") as lines:
        for line in lines:
            if (found := _LINE.fullmatch(line.rstrip("\n"))) is not None:
                flags = int(found["flags"], 16)
                yield Row(int(found["inode"]), int(found["type"], 16), bool(flags & _ACCEPTS), found["name"] or "")
