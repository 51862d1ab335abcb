"""A configuration: the text of its files, with slots where the descriptors of listeners will stand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from multibinder import OPTION_NAMES, Address, ListenerSpec, Options, TcpAddress
from multibinder.launch.direct.slots import distinguished
from multibinder.wire import kinds
from multibinder_haproxy.config.inputs import Inputs
from multibinder_haproxy.config.sources import Sources
from multibinder_haproxy.reexec import slots

#: The options of a listener that HAProxy sets, or takes off again, at each load (tcp_bind_listener() in
#: src/proto_tcp.c), and its own word for each.
HAPROXYS_OPTIONS = {"mss": "mss", "defer_accept": "defer-accept", "fastopen": "tfo", "user_timeout": "tcp-ut"}
#: The options that a listener of a configuration can have.
SLOT_OPTIONS = tuple(name for name in OPTION_NAMES if name not in HAPROXYS_OPTIONS)


class Slot(msgspec.Struct, frozen=True, omit_defaults=True):
    """A place in a configuration for a listener's descriptor, and the address and options of the listener.

    ``host`` and ``port`` are those of a TCP listener; one of another kind has an ``endpoint``, its address in HAProxy's
    grammar. ``shard`` and ``netns`` are those of ``ListenerSpec``.
    """

    host: str = ""
    port: int = 0
    backlog: int | None = None
    v6only: bool | None = None
    name: str | None = None
    endpoint: str = ""
    shard: int = 0
    netns: str = ""
    freebind: bool | None = None
    transparent: bool | None = None
    interface: str | None = None
    mark: int | None = None
    keepalive_idle: int | None = None
    keepalive_interval: int | None = None
    keepalive_count: int | None = None
    tos: int | None = None
    rcvbuf: int | None = None
    sndbuf: int | None = None
    mode: int | None = None
    user: int | None = None
    group: int | None = None

    @property
    def address(self) -> Address:
        return Address.parse(self.endpoint) if self.endpoint else TcpAddress.of(self.host, self.port)

    @property
    def is_of_datagrams(self) -> bool:
        address = self.address
        return not kinds.of_address(address).accepts(address)

    @property
    def options(self) -> dict[str, Any]:
        """The options that are given, with their values."""
        return {name: value for name in SLOT_OPTIONS if (value := getattr(self, name)) is not None}

    @property
    def spec(self) -> ListenerSpec:
        return ListenerSpec(self.address, Options(**self.options), self.shard, self.netns)

    @property
    def key(self) -> str:
        """Return a text that is equal for two slots that share a descriptor: that of ``direct.slots.key_of``.

        It is asked for many times in a start, and ``direct.slots.key_of`` takes a mapping.
        """
        address = self.endpoint or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")
        if self.shard or self.netns:
            address = distinguished(address, self.shard, self.netns)
        return f"{address} ({self.name})" if self.name else address

    @property
    def placeholder(self) -> str:
        """Return the text that stands in a rendered file until the descriptor is known."""
        return f"fd@{{{self.key}}}"


def slot_of(spec: ListenerSpec) -> Slot:
    """Return the slot for a listener."""
    fields = spec.address.wire_fields()
    options = {**spec.options.given, "name": spec.options.name, "shard": spec.shard, "netns": spec.netns}
    if "endpoint" in fields:
        return Slot(endpoint=fields["endpoint"], **options)
    return Slot(fields["address"], fields["port"], **options)


class Place(msgspec.Struct, frozen=True):
    """Where a slot stands: in which line of which rendered file. Lines count from 1."""

    key: str
    file: str
    line: int


class UnusedBind(msgspec.Struct, frozen=True):
    """A bind in the text of a configuration that HAProxy does not accept on. ``why`` is a part of a sentence."""

    key: str
    file: str
    line: int
    why: str


class Config(msgspec.Struct, frozen=True):
    """A whole configuration: the text of each file by its target name, with a placeholder in each slot.

    ``slots`` are those that HAProxy reads as a bind, and ``places`` says where they stand. ``unused`` are those that
    it does not read; the text has their plain address already. ``latin1`` names the files that are not UTF-8:
    ``files`` has their bytes as Latin-1. ``warnings`` are for every load, ``notes`` for ``check`` alone. ``rendered``
    is the digest of what the templates gave, before anything was taken out of it. ``conditional`` says that binds
    depend on conditions, which HAProxy judges by its environment and its version. ``sources`` are the files that it
    was made of; equal configurations may have different ones. ``untaken`` is the digest before plain binds were taken
    over; empty if that was not asked for. ``refused`` are the keys of plain binds that the binder has no right to open,
    so that HAProxy binds them.
    """

    files: dict[str, str]
    slots: list[Slot]
    warnings: list[str] = []
    # "origins" is the key of records that version 0.1.0 wrote and reads.
    sources: Sources = msgspec.field(default=Sources(), name="origins")
    latin1: list[str] = []
    places: list[Place] = []
    unused: list[UnusedBind] = []
    notes: list[str] = []
    rendered: str = ""
    inputs: Inputs = Inputs()
    conditional: bool = False
    untaken: str = ""
    refused: list[str] = []

    def fill(self, descriptors: Mapping[str, int]) -> dict[str, bytes]:
        """Return the files with a descriptor in each slot; KeyError names a slot without one."""
        return slots.filled_files(self.files, self.latin1, {slot.key: descriptors[slot.key] for slot in self.slots})

    def plain(self) -> dict[str, bytes]:
        """Return the files with HAProxy's own binds in the slots."""
        return slots.plain_files(
            self.files, self.latin1, {slot.key: msgspec.structs.asdict(slot) for slot in self.slots}
        )

    def digest(self) -> str:
        """Return a text that is equal for two configurations that ask for the same files and sockets.

        Neither the sources count, nor what HAProxy's conditions left unread.
        """
        if self.rendered:
            return self.rendered
        asked = [self.files, sorted(self.slots, key=lambda slot: slot.key), sorted(self.latin1)]
        return hashlib.blake2b(msgspec.json.encode(asked), digest_size=16).hexdigest()

    def is_from(self, other: Config) -> bool:
        """Return whether the sources of ``other`` give this configuration, by the same options and in the same place.

        ``other`` is as it was rendered: HAProxy was not asked about it, and its plain binds are not taken over.
        """
        return (self.untaken or self.digest()) == other.digest()

    def same_as(self, other: Config | None) -> bool:
        """Return whether HAProxy would get the same files and sockets. The sources do not count."""
        return other is not None and self.digest() == other.digest()
