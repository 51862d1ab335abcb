"""The listeners of an instance: asked for at each start of a copy, held meanwhile, and released when not named."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Sequence

from multibinder.kernel.pidfd import duplicate_socket
from multibinder.launch.direct import client, owned, received
from multibinder.launch.direct.errors import Away, Refused
from multibinder.launch.direct.slots import address_of, key_of
from multibinder.launch.errors import LaunchError
from multibinder.launch.run.settings import Bind
from multibinder.launch.run.tasks import sleep
from multibinder.launch.styles.passed import Passed

#: The time for one answer of the binder: nothing else is done meanwhile. It answers within a millisecond.
_TIMEOUT_S = 2.0
_AGAIN_S = 0.1
#: systemd or the guard starts a crashed binder again within this time.
RESTART_S = 3.0


class NoListeners(LaunchError):
    """The listeners cannot be had: the binder refuses them, or does not answer."""

    phase = "bind"


class Listeners:
    """Gets and releases listeners. ``binder`` is the control socket; None binds them in this process.

    Nothing is released while ``are_shared`` returns True: another server serves on them. The descriptors belong to this
    object: a copy can be started while the binder is away.
    """

    def __init__(self, binder: str | None, owner: str, are_shared: Callable[[], bool] = lambda: False) -> None:
        self._binder = binder
        self._owner = owner
        self._are_shared = are_shared
        self._held: dict[str, int] = {}

    async def acquire(self, binds: Sequence[Bind], wait_s: float) -> tuple[list[Passed], list[str]]:
        """Return the listeners of all binds, and warnings. If the binder is away, those that are held will do.

        A binder that does not answer is asked again for ``wait_s``. Raises NoListeners.
        """
        slots = [slot for bind in binds for slot in bind.slots]
        warnings: list[str] = []
        if slots:
            warnings = await self._ask(slots, wait_s)
        return [Passed(slot, bind.name, self._held[key_of(slot)]) for bind in binds for slot in bind.slots], warnings

    def recover(self, pid: int, binds: Sequence[Bind]) -> None:
        """Hold what a copy of an earlier ``run`` has: its sockets are the only ones if there is no binder.

        Not for shards: nothing here tells one from another.
        """
        slots = {key_of(slot): slot for bind in binds for slot in bind.slots}
        addresses = [address_of(slot) for slot in slots.values()]
        for name in _sockets_of(pid):
            missing = [key for key, slot in slots.items() if addresses.count(address_of(slot)) == 1]
            missing = [key for key in missing if key not in self._held]
            if not missing:
                return
            with contextlib.suppress(OSError), duplicate_socket(pid, name) as sock:
                for key in missing:
                    if received.is_listener(sock.fileno(), slots[key]):
                        self._held[key] = sock.detach()
                        break

    async def release_unused(self, binds: Sequence[Bind]) -> tuple[list[str], list[str]]:
        """Release each listener of the owner that no bind names. Return the closed addresses, and those kept by others.

        Raises NoListeners if the binder does not answer; the next call releases them.
        """
        if self._are_shared():
            return [], []
        slots = [slot for bind in binds for slot in bind.slots]
        keys = {key_of(slot) for slot in slots}
        surplus = {key: self._held.pop(key) for key in list(self._held) if key not in keys}
        closed: list[str] = []
        kept: list[str] = []
        try:
            if self._binder is not None:
                closed, kept = await self._release(slots)
            else:
                closed = [address_of_key(key) for key in surplus]
                for fd in surplus.values():
                    _end(fd)
        finally:
            received.close(surplus.values())
        return closed, kept

    def close(self) -> None:
        """Close the descriptors. The binder keeps the listeners open."""
        received.close(self._held.values())
        self._held.clear()

    async def _ask(self, slots: Sequence[dict[str, str | int | bool]], wait_s: float) -> list[str]:
        if self._binder is None:
            for slot in slots:
                if key_of(slot) not in self._held:
                    self._held[key_of(slot)] = _bind_here(slot)
            return []
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fresh, warnings = client.obtain(self._binder, slots, self._owner, 0, _TIMEOUT_S)
                break
            except Refused as error:
                raise NoListeners(str(error)) from error
            except (Away, OSError) as error:  # OSError: this process is at a limit of descriptors
                why = str(error) if isinstance(error, Away) else f"the binder cannot be asked: {error.strerror}"
                wanted = {key_of(slot) for slot in slots}
                ours = {key: fd for key, fd in self._held.items() if key in wanted}
                if received.still_listening(ours).keys() == wanted:
                    return [f"{why}; the copy gets the listeners that are held"]
                if time.monotonic() >= deadline:
                    waited = f" (waited {wait_s:g} s)" if wait_s else ""
                    raise NoListeners(f"{why}{waited}") from error
                await sleep(_AGAIN_S)
        for key, fd in fresh.items():
            held = self._held.get(key)
            if held is not None and received.is_same(fd, held):
                os.close(fd)  # a check of readiness may be using the number of the other
                continue
            self._held[key] = fd
            if held is not None:
                os.close(held)
        return warnings

    async def _release(self, slots: Sequence[dict[str, str | int | bool]]) -> tuple[list[str], list[str]]:
        assert self._binder is not None  # noqa: S101
        deadline = time.monotonic() + RESTART_S
        while True:
            try:
                surplus = owned.unused(owned.owned(self._binder, self._owner, _TIMEOUT_S), slots)
                return owned.release(self._binder, surplus, self._owner, _TIMEOUT_S)
            except (Away, Refused, OSError) as error:
                if isinstance(error, Refused) or time.monotonic() >= deadline:
                    raise NoListeners(f"listeners that are not used could not be released: {error}") from error
                await sleep(_AGAIN_S)


def _sockets_of(pid: int) -> list[int]:
    """Return the descriptors of a process that are sockets; none if they cannot be read."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                    found.append(int(name))
    return found


def address_of_key(key: str) -> str:
    return key.partition(" ")[0]


def _end(fd: int) -> None:
    """Stop listening for every holder, as the binder does at a release."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            if sock.type == socket.SOCK_STREAM:
                sock.shutdown(socket.SHUT_RDWR)
            if sock.family == socket.AF_UNIX and isinstance(sock.getsockname(), str):
                os.unlink(sock.getsockname())
    except OSError:
        pass  # it was shut down already, or its path is gone


def _bind_here(slot: dict[str, str | int | bool]) -> int:
    """Bind an address without a binder. Raises NoListeners."""
    address = address_of(slot)
    prefix, at, rest = address.partition("@")
    more = [name for name in slot if name not in ("host", "port", "endpoint", "backlog", "name")]
    if more or (at and prefix not in ("udp", "unix")):
        raise NoListeners(f"{address}{f' with {more[0]}' if more else ''} needs a binder: start 'multibinder serve'")
    backlog = int(slot.get("backlog") or 4096)
    try:
        if prefix == "unix" and at:
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(rest)
            sock.listen(backlog)
            return sock.detach()
        host, _, port = (rest if at else address).rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        if at:
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.bind((host, int(port)))
            return sock.detach()
        return socket.create_server((host, int(port)), family=family, backlog=backlog).detach()
    except OSError as error:
        # socket.create_server() adds the address to strerror.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise NoListeners(f"{address}: cannot bind: {reason.lower()}") from error
