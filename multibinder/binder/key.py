"""The key of a listener: equal keys have the same socket."""

from __future__ import annotations

import functools

import msgspec

from multibinder.kernel import netns
from multibinder.wire.addresses import Address
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.options import COOKIE
from multibinder.wire.status import shown_key


class Key(msgspec.Struct, frozen=True):
    """What tells a listener from all others. None of it can change while the socket exists.

    ``netns`` is the SO_NETNS_COOKIE of its network namespace, 0 for the binder's own. ``shard`` is its number among the
    listeners that share the address (SO_REUSEPORT); a listener that is alone on its address has the number 0.
    """

    address: Address
    netns: int = 0
    shard: int = 0

    @staticmethod
    def of(spec: ListenerSpec) -> Key:
        """Return the key that a client asks for. The binder has resolved the namespace of ``spec``."""
        return Key(spec.address, netns_of(spec), spec.shard)

    def __str__(self) -> str:
        return shown_key(str(self.address), self.shard, self.netns)


def netns_of(spec: ListenerSpec) -> int:
    """Return the cookie of the namespace of ``spec``, which the binder has resolved; 0 for the binder's own."""
    return int(spec.netns.removeprefix(COOKIE)) if spec.netns else 0


@functools.cache
def own_netns() -> int:
    """Return the cookie of the binder's network namespace, in which it stays; 0 before Linux 5.14."""
    return netns.own_cookie()


def short_cookie(cookie: int) -> int:
    """Return the number for ``Key.netns`` of a namespace with this SO_NETNS_COOKIE."""
    return 0 if cookie == own_netns() else cookie
