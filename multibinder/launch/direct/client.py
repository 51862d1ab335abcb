"""Get listeners from the binder: ``bind`` of docs/reference/wire.md, and nothing else of it."""

import socket
import time

from multibinder.launch.direct import descriptor_limit
from multibinder.launch.direct.connection import DESCRIPTORS_PER_MESSAGE, Connection, no_binder
from multibinder.launch.direct.errors import Away, Refused
from multibinder.launch.direct.received import accepts, close, is_listener, is_shut
from multibinder.launch.direct.slots import address_of, key_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    Slot = Mapping[str, Any]

#: A binder that is started again is asked again after this time.
_AGAIN_S = 0.05
#: The largest argument of listen(2). The kernel reduces it to net.core.somaxconn.
_LONGEST_BACKLOG = 2**31 - 1
#: Members of an element that are sent only if they are others.
_DEFAULTS = {"endpoint": "", "shard": 0, "netns": ""}


def obtain(
    path: str, slots: "Sequence[Slot]", owner: str, wait_s: float, timeout_s: float = 10.0, kept_free: int = 0
) -> "tuple[dict[str, int], list[str]]":
    """Ask for the listeners of all slots, or none; return descriptors by slot key, and warnings.

    The caller owns the descriptors, which are close-on-exec. The limit of open files is raised if they need it, with
    room for ``kept_free`` more. A binder that does not answer is asked again for ``wait_s``; ``timeout_s`` limits
    one answer. Raises Refused, Away.
    """
    if not slots:
        return {}, []
    if too_few := descriptor_limit.make_room(len(slots), kept_free):
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
    return {key_of(slot): fd for slot, fd in zip(slots, descriptors, strict=True)}, warnings


def _let_listen(fd: int, slot: "Slot") -> None:
    """Let a new shard listen. The binder leaves that to who gets it, so that no client waits where nobody accepts.

    One that a binder has taken back is not shared any more.
    """
    if not slot.get("shard"):
        return
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return
    try:
        is_shared = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        if sock.type == socket.SOCK_STREAM and is_shared and not accepts(sock):
            sock.listen(_LONGEST_BACKLOG)  # the binder sets the backlog that was asked for
    except OSError:
        pass
    finally:
        sock.detach()


def _ask(path: str, slots: "Sequence[Slot]", owner: str, timeout_s: float) -> "tuple[list[int], list[str]]":
    """Ask once. The Ruby program binds only the first address of a request, and answers true."""
    descriptors: list[int] = []
    warnings: list[str] = []
    connection = Connection(path, time.monotonic() + timeout_s)
    try:
        while len(descriptors) < len(slots):
            rest = slots[len(descriptors) :]
            result = connection.ask("bind", [_params(slot, owner) for slot in rest], acknowledge=True)
            if result is not True and not (isinstance(result, dict) and {"descriptors", "listeners"} <= result.keys()):
                raise no_binder(path, str(result)[:80])
            count = 1 if result is True else int(result["descriptors"])
            for _ in range(DESCRIPTORS_PER_MESSAGE, count, DESCRIPTORS_PER_MESSAGE):
                connection.next_message()
            came = connection.take()
            descriptors += came
            for fd, slot in zip(came, rest, strict=False):
                _let_listen(fd, slot)
            wrong = [slot for fd, slot in zip(came, rest, strict=False) if not is_listener(fd, slot)]
            if len(came) == count and any(is_shut(fd) for fd in came):
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
