"""Verify descriptors: is this the listener that was asked for?"""

import contextlib
import os
import re
import socket

from multibinder.launch.direct.slots import slot_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    Slot = Mapping[str, Any]


def still_listening(descriptors: "Mapping[str, int]") -> "dict[str, int]":
    """Return those descriptors, by slot key, that are the listener of their key. Others may be other files by now."""
    return {key: fd for key, fd in descriptors.items() if is_listener(fd, slot_of(key))}


def close(descriptors: "Iterable[int]") -> None:
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)


def is_listener(fd: int, slot: "Slot") -> bool:
    """Return whether a descriptor is the socket of a slot, as far as its name and its state tell."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return False
    try:
        prefix, _, rest = str(slot.get("endpoint") or "").partition("@")
        if prefix == "unix":
            # HAProxy itself, from which it may have been adopted, binds PATH.PID.tmp, and renames that.
            name = str(sock.getsockname())
            bound = name == rest or bool(re.fullmatch(re.escape(rest) + r"\.[0-9]+\.(?:tmp|bak)", name))
            return sock.family == socket.AF_UNIX and bound and accepts(sock)
        host, port = _host_and_port(rest) if prefix else (slot["host"], slot["port"])
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound_host, bound_port = sock.getsockname()[:2]
        same_host = sock.family == family and socket.inet_pton(family, bound_host) == socket.inet_pton(family, host)
        right = sock.type == socket.SOCK_DGRAM if prefix else accepts(sock)
        return same_host and port in (0, bound_port) and right
    except (OSError, ValueError, TypeError):
        return False
    finally:
        sock.detach()


def is_same(fd: int, other: int) -> bool:
    """Return whether two descriptors are of one socket."""
    first, second = os.fstat(fd), os.fstat(other)
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def _host_and_port(text: str) -> "tuple[str, int]":
    host, _, port = text.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def accepts(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def is_shut(fd: int) -> bool:
    """Return whether this is a stream socket that does not listen."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return False
    try:
        return sock.type == socket.SOCK_STREAM and not accepts(sock)
    except OSError:
        return False
    finally:
        sock.detach()
