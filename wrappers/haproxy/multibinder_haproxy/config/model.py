"""A configuration: the text of its files, with slots where the descriptors of listeners will stand."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from multibinder import ListenerSpec, Options, TcpAddress
from multibinder_haproxy.config.sources import Sources

_SLOT = re.compile(r"fd@\{([^{}]*)\}")


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
        """Return a text that is equal for two slots that share a descriptor."""
        return str(self.spec)

    @property
    def placeholder(self) -> str:
        """Return the text that stands in a rendered file until the descriptor is known."""
        return f"fd@{{{self.key}}}"

    @property
    def plain(self) -> str:
        """Return the address with which HAProxy binds by itself if there is no binder."""
        options = f" backlog {self.backlog}" if self.backlog else ""
        return f"{self.spec.address}{options}{' v6only' if self.v6only else ''}"


class Config(msgspec.Struct, frozen=True):
    """A whole configuration: the text of each file by its target name, with a placeholder in each slot.

    ``sources`` are the files that it was made of; equal configurations may have different ones.
    """

    files: dict[str, str]
    slots: list[Slot]
    warnings: list[str] = []
    # "origins" is the key of records that version 0.1.0 wrote and reads.
    sources: Sources = msgspec.field(default=Sources(), name="origins")

    def fill(self, descriptors: Mapping[str, int]) -> dict[str, str]:
        """Return the files with a descriptor in each slot; KeyError names a slot without one."""
        keys = {slot.key for slot in self.slots}

        def number(match: re.Match[str]) -> str:
            return f"fd@{descriptors[match[1]]}" if match[1] in keys else match[0]

        return {target: _SLOT.sub(number, text) for target, text in self.files.items()}

    def plain(self) -> dict[str, str]:
        """Return the files with HAProxy's own binds in the slots."""
        binds = {slot.key: slot.plain for slot in self.slots}
        return {
            target: _SLOT.sub(lambda match: binds.get(match[1], match[0]), text) for target, text in self.files.items()
        }

    def same_as(self, other: Config | None) -> bool:
        """Return whether HAProxy would get the same files and sockets. The sources do not count."""
        return other is not None and (self.files, self.slots) == (other.files, other.slots)
