"""Verify descriptors: is this the listener that was asked for?"""

import os
import re
import socket

from multibinder.launch.direct.slots import slot_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    Slot = Mapping[str, Any]

#: The prefixes of addresses with a path, and the type of the socket there.
_PATHS = {"unix": socket.SOCK_STREAM, "uxdg": socket.SOCK_DGRAM, "unixseq": socket.SOCK_SEQPACKET}
#: The prefixes of addresses of IP whose sockets receive datagrams.
_DATAGRAMS = ("udp", "quic4", "quic6")
#: sizeof(sun_path), which HAProxy fills with NUL.
_ABSTRACT_BYTES = 108


def still_listening(descriptors: "Mapping[str, int]") -> "dict[str, int]":
    """Return those descriptors, by slot key, that are the listener of their key. Others may be other files by now."""
    return {key: fd for key, fd in descriptors.items() if is_listener(fd, slot_of(key))}


def close(descriptors: "Iterable[int]") -> None:
    for fd in descriptors:
        try:
            os.close(fd)
        except OSError:
            pass


def is_listener(fd: int, slot: "Slot") -> bool:
    """Return whether a descriptor is the socket of a slot, as far as its name and its state tell."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return False
    try:
        prefix, _, rest = str(slot.get("endpoint") or "").partition("@")
        if prefix in _PATHS:
            return _is_at_path(sock, rest, _PATHS[prefix])
        if prefix in ("abns", "abnsz"):
            return _is_abstract(sock, rest, prefix == "abns")
        if prefix == "vsock":
            return _is_vsock(sock, rest)
        host, port = _host_and_port(rest) if prefix else (slot["host"], slot["port"])
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound_host, bound_port = sock.getsockname()[:2]
        same_host = sock.family == family and socket.inet_pton(family, bound_host) == socket.inet_pton(family, host)
        right = sock.type == socket.SOCK_DGRAM if prefix in _DATAGRAMS else accepts(sock)
        return same_host and port in (0, bound_port) and right
    except (OSError, ValueError, TypeError):
        return False
    finally:
        sock.detach()


def is_same(fd: int, other: int) -> bool:
    """Return whether two descriptors are of one socket."""
    first, second = os.fstat(fd), os.fstat(other)
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def _is_at_path(sock: socket.socket, path: str, sort: int) -> bool:
    # HAProxy itself, from which it may have been adopted, binds PATH.PID.tmp, and renames that.
    name = str(sock.getsockname())
    bound = name == path or bool(re.fullmatch(re.escape(path) + r"\.[0-9]+\.(?:tmp|bak)", name))
    right = sock.type == sort and (sort == socket.SOCK_DGRAM or accepts(sock))
    return sock.family == socket.AF_UNIX and bound and right


def _is_abstract(sock: socket.socket, name: str, is_padded: bool) -> bool:
    raw = b"\0" + name.encode()
    wanted = raw.ljust(_ABSTRACT_BYTES, b"\0") if is_padded else raw
    return sock.family == socket.AF_UNIX and sock.getsockname() == wanted and accepts(sock)


def _is_vsock(sock: socket.socket, text: str) -> bool:
    cid, _, port = text.partition(":")
    bound_cid, bound_port = sock.getsockname()
    return (
        sock.family == socket.AF_VSOCK
        and bound_cid == (socket.VMADDR_CID_ANY if cid == "*" else int(cid))
        and int(port) in (0, bound_port)
        and accepts(sock)
    )


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
