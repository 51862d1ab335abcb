"""The record of a first switch (first_switch.py): from whom the listeners of an instance were adopted."""

from __future__ import annotations

import msgspec

from multibinder.launch.former import Former
from multibinder.launch.instance_files import InstanceFiles

FILE_NAME = "first-switch.json"


class Switch(msgspec.Struct, frozen=True):
    """A switch that has begun: the ``addresses`` that were adopted, and the servers that they were adopted from.

    ``told``: these servers were told to finish, and accept no more.
    """

    addresses: list[str]
    formers: list[Former]
    told: bool = False


def adopted_from_the_living(files: InstanceFiles) -> list[str]:
    """Return the adopted addresses on which a former server still accepts: nothing may shut them down."""
    switch = files.read_record(FILE_NAME, Switch)
    if switch is None or switch.told or not any(former.is_alive() for former in switch.formers):
        return []
    return switch.addresses
