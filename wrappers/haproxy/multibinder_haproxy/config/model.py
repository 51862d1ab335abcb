"""A configuration: the text of its files, with slots where the descriptors of listeners will stand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from multibinder import ListenerSpec, Options, TcpAddress
from multibinder_haproxy.config.inputs import Inputs
from multibinder_haproxy.config.sources import Sources
from multibinder_haproxy.reexec import slots


class Slot(msgspec.Struct, frozen=True, omit_defaults=True):
    """A place in a configuration for a listener's descriptor, and the address and options of the listener."""

    host: str
    port: int
    backlog: int | None = None
    v6only: bool | None = None
    name: str | None = None

    @property
    def spec(self) -> ListenerSpec:
        return ListenerSpec(TcpAddress.of(self.host, self.port), Options(self.backlog, self.v6only, self.name))

    @property
    def key(self) -> str:
        """Return a text that is equal for two slots that share a descriptor: that of ``spec``.

        It is asked for many times in a start, and ``spec`` checks all values each time.
        """
        address = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        return f"{address} ({self.name})" if self.name else address

    @property
    def placeholder(self) -> str:
        """Return the text that stands in a rendered file until the descriptor is known."""
        return f"fd@{{{self.key}}}"


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
    was made of; equal configurations may have different ones.
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

    def same_as(self, other: Config | None) -> bool:
        """Return whether HAProxy would get the same files and sockets. The sources do not count."""
        return other is not None and self.digest() == other.digest()
