"""Get listeners from the binder: ``bind`` of docs/reference/wire.md, and nothing else of it."""

import array
import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import time

from multibinder_haproxy.reexec import descriptor_limit
from multibinder_haproxy.reexec.errors import Away, Refused
from multibinder_haproxy.reexec.slots import address_of, key_of, slot_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    Slot = Mapping[str, Any]

_DESCRIPTORS_PER_MESSAGE = 252
_REPLY_LIMIT = 16 * 1024 * 1024
#: A binder that is started again is asked again after this time.
_AGAIN_S = 0.05
#: A descriptor must be below HAProxy's maxsock, which follows maxconn, so the lowest ones keep their numbers. HAProxy's
#: master assumes a maxconn of 100 for itself, and exits if a descriptor that it opens is above 214 (measured on 2.6.12;
#: 235 on 3.2), so these numbers are left to it.
_MASTERS_OWN = range(100, 200)
#: The largest argument of listen(2). The kernel reduces it to net.core.somaxconn.
_LONGEST_BACKLOG = 2**31 - 1
#: Members of an element that are sent only if they are others.
_DEFAULTS = {"endpoint": "", "shard": 0, "netns": ""}


def obtain(
    path: str, slots: "Sequence[Slot]", owner: str, wait_s: float, timeout_s: float = 10.0
) -> "tuple[dict[str, int], list[str]]":
    """Ask for the listeners of all slots, or none; return inheritable descriptors by slot key, and warnings.

    The caller owns the descriptors. A binder that does not answer is asked again for ``wait_s``; ``timeout_s`` limits
    one answer. Raises Refused, Away.
    """
    if not slots:
        return {}, []
    if too_few := descriptor_limit.make_room(len(slots)):
        needed, hard = too_few
        raise Refused(
            f"{len(slots)} listeners need a limit of {needed} open files, and the hard limit is {hard}; raise it with "
            "LimitNOFILE= or 'ulimit -n'"
        )
    deadline = time.monotonic() + wait_s
    while True:
        try:
            descriptors, warnings = _ask(path, slots, owner, timeout_s)
            break
        except Away as error:
            if time.monotonic() >= deadline:
                waited = f" (waited {wait_s:g} s)" if wait_s else ""
                raise Away(f"{error}{waited}") from None
            time.sleep(_AGAIN_S)
    return {key_of(slot): _place(fd) for slot, fd in zip(slots, descriptors, strict=True)}, warnings


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
            return sock.family == socket.AF_UNIX and bound and _accepts(sock)
        host, port = _host_and_port(rest) if prefix else (slot["host"], slot["port"])
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound_host, bound_port = sock.getsockname()[:2]
        same_host = sock.family == family and socket.inet_pton(family, bound_host) == socket.inet_pton(family, host)
        right = sock.type == socket.SOCK_DGRAM if prefix else _accepts(sock)
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


def _accepts(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _let_listen(fd: int, slot: "Slot") -> None:
    """Let a new shard listen. The binder leaves that to who gets it, so that no client waits where nobody accepts.

    One that a binder has taken back is not shared any more.
    """
    if not slot.get("shard"):
        return
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
        is_shared = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        if sock.type == socket.SOCK_STREAM and is_shared and not _accepts(sock):
            sock.listen(_LONGEST_BACKLOG)  # the binder sets the backlog that was asked for


def _is_shut(fd: int) -> bool:
    """Return whether this is a stream socket that does not listen."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return False
    try:
        return sock.type == socket.SOCK_STREAM and not _accepts(sock)
    except OSError:
        return False
    finally:
        sock.detach()


def _ask(path: str, slots: "Sequence[Slot]", owner: str, timeout_s: float) -> "tuple[list[int], list[str]]":
    """Ask once. The Ruby program binds only the first address of a request, and answers true."""
    descriptors: list[int] = []
    warnings: list[str] = []
    connection = _Connection(path, time.monotonic() + timeout_s)
    try:
        while len(descriptors) < len(slots):
            rest = slots[len(descriptors) :]
            request = {
                "jsonrpc": "2.0",
                "method": "bind",
                "id": "1",
                "params": [_params(slot, owner) for slot in rest],
                "acknowledge": True,
            }
            result = connection.ask(request)
            count = 1 if result is True else int(result["descriptors"])
            for _ in range(_DESCRIPTORS_PER_MESSAGE, count, _DESCRIPTORS_PER_MESSAGE):
                connection.next_message()
            came = connection.take()
            descriptors += came
            for fd, slot in zip(came, rest, strict=False):
                _let_listen(fd, slot)
            wrong = [slot for fd, slot in zip(came, rest, strict=False) if not is_listener(fd, slot)]
            if len(came) == count and any(_is_shut(fd) for fd in came):
                # A binder that stops takes back what it has answered and its client has not acknowledged.
                raise Away(f"the binder at {path} took its listeners back before it knew that they had come")
            if len(came) != count or not 0 < count <= len(rest) or wrong:
                connection.notify("declined", result)
                what = f"not the listener of {address_of(wrong[0])}" if wrong else f"{len(came)} of {count} listeners"
                hint = "; at RLIMIT_NOFILE the kernel drops them: raise LimitNOFILE=" if len(came) < count else ""
                raise Refused(f"the binder at {path} sent {what}{hint}")
            connection.notify("received", result)
            if result is not True:
                warnings += [f"{it['address']}: {it['warning']}" for it in result["listeners"] if it.get("warning")]
        for fd in descriptors:
            os.set_inheritable(fd, True)
    except BaseException:
        close(descriptors)
        raise
    finally:
        connection.close()
    return descriptors, warnings


def _params(slot: "Slot", owner: str) -> "dict[str, Any]":
    """Return one element of the request: fields that are not set are left out, as the Ruby program needs it."""
    params = {name: value for name, value in slot.items() if value is not None and name not in _DEFAULTS}
    params |= {name: slot[name] for name, default in _DEFAULTS.items() if slot.get(name, default) != default}
    if "endpoint" not in params:
        params |= {"address": params.pop("host"), "port": params.pop("port", 0)}
    return {**params, "owner": owner}


class _Connection:
    """One connection to the control socket, until ``deadline`` (time.monotonic())."""

    def __init__(self, path: str, deadline: float) -> None:
        self._path = path
        self._deadline = deadline
        self._arrived = b""
        self._descriptors: list[int] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._limit()
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise Away(f"cannot reach the binder at {path}: {_why(error, path)}") from None

    def ask(self, request: "dict[str, Any]") -> "Any":
        """Send a request and return its result. Raises Refused with the binder's reason, Away."""
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except TimeoutError:
            raise Away(f"the binder at {self._path} does not read") from None
        except OSError:
            pass  # its last message says why
        reply = self.next_message()
        if reply.get("error"):
            said = str(reply["error"].get("message") or reply["error"])
            old = "; this binder is too old for that: 'multibinder upgrade'" if "unknown field" in said else ""
            raise Refused(f"{said}{old}")
        result = reply.get("result")
        if result is not True and not (isinstance(result, dict) and "descriptors" in result and "listeners" in result):
            raise _no_binder(self._path, str(reply)[:80])
        return result

    def next_message(self) -> "dict[str, Any]":
        """Return the next message of the binder. The Ruby program ends none with a newline. Raises Refused, Away."""
        while True:
            text, newline, rest = self._arrived.partition(b"\n")
            if text:
                try:
                    message = json.loads(text)
                    self._arrived = rest
                    break
                except ValueError:
                    if newline or len(text) > _REPLY_LIMIT:
                        raise _no_binder(self._path, repr(text[:80])) from None
            self._receive()
        if not isinstance(message, dict):
            raise _no_binder(self._path, repr(text[:80]))
        return message

    def notify(self, what: str, result: "Any") -> None:
        """Say what became of the descriptors, if the binder asks for it. Raises Away if it has taken them back."""
        if result is True or not result.get("acknowledge"):
            return
        try:
            self._socket.sendall(json.dumps({"jsonrpc": "2.0", "method": what, "params": {"id": "1"}}).encode() + b"\n")
        except OSError:
            if what == "received":
                raise Away(f"the binder at {self._path} ended before it knew that its listeners had come") from None

    def take(self) -> "list[int]":
        """Return the descriptors that came since the last call. The caller owns them."""
        descriptors, self._descriptors = self._descriptors, []
        return descriptors

    def close(self) -> None:
        self._socket.close()
        close(self._descriptors)

    def _receive(self) -> None:
        try:
            self._limit()
            room = socket.CMSG_SPACE((_DESCRIPTORS_PER_MESSAGE + 1) * array.array("i").itemsize)
            chunk, ancillary, _, _ = self._socket.recvmsg(65536, room, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            raise Away(f"the binder at {self._path} did not answer in time") from None
        except OSError as error:
            raise Away(f"the binder at {self._path} ended the connection: {error.strerror}") from None
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                came = array.array("i")
                came.frombytes(content[: len(content) - len(content) % came.itemsize])
                self._descriptors += came
        if not chunk:
            raise Away(f"the binder at {self._path} closed the connection without an answer")
        self._arrived += chunk

    def _limit(self) -> None:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._socket.settimeout(left_s)


def _no_binder(path: str, answer: str) -> Refused:
    return Refused(
        f"{path} is not the control socket of a binder: it answers {answer}; MULTIBINDER_SOCK or --socket has to name "
        "that of 'multibinder serve'"
    )


def _why(error: OSError, path: str) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such socket; is 'multibinder serve' running?"
    if isinstance(error, ConnectionRefusedError) and (os.path.isfile(path) or os.path.isdir(path)):
        return "it is not a socket"
    if error.errno == errno.EPROTOTYPE:
        return "it is a socket of another type, and not the control socket of a binder"
    if isinstance(error, ConnectionRefusedError):
        return "no process listens there any more; is 'multibinder serve' running?"
    if isinstance(error, PermissionError):
        return "permission denied; the binder's --mode and --group say who may connect"
    return error.strerror or str(error)


def _place(fd: int) -> int:
    """Return the same socket with a number that leaves HAProxy's master room for its own descriptors."""
    if fd not in _MASTERS_OWN:
        return fd
    placed = fcntl.fcntl(fd, fcntl.F_DUPFD, _MASTERS_OWN.stop)
    os.close(fd)
    return placed
