"""Who has a claim to a listener."""

from __future__ import annotations

import os

import msgspec


class Owner(msgspec.Struct, frozen=True):
    """A label, and the uid that it belongs to. Clients without a label have the empty one, each uid for itself.

    ``str()`` prints what ``parse`` reads: ``haproxy@web:107``. No label has a colon.
    """

    label: str
    uid: int

    @staticmethod
    def parse(text: str) -> Owner:
        label, colon, uid = text.rpartition(":")
        return Owner(label, int(uid)) if colon and uid.isdecimal() else Owner(text, 0)

    def __str__(self) -> str:
        return f"{self.label}:{self.uid}"


class Labels:
    """How many listeners each owner has a claim to. A label is one uid's for as long as there is one."""

    def __init__(self) -> None:
        self._claims: dict[Owner, int] = {}
        self._uids: dict[str, int] = {}
        self._of_uid: dict[int, int] = {}

    def holder(self, label: str) -> int | None:
        """The uid that the label belongs to."""
        return self._uids.get(label) if label else None

    def claims_of(self, uid: int) -> int:
        return self._of_uid.get(uid, 0)

    def add(self, owner: Owner) -> None:
        self._claims[owner] = self._claims.get(owner, 0) + 1
        self._of_uid[owner.uid] = self._of_uid.get(owner.uid, 0) + 1
        if owner.label:
            self._uids[owner.label] = owner.uid

    def remove(self, owner: Owner) -> None:
        self._of_uid[owner.uid] -= 1
        if not self._of_uid[owner.uid]:
            del self._of_uid[owner.uid]
        self._claims[owner] -= 1
        if not self._claims[owner]:
            del self._claims[owner]
        if owner not in self._claims:
            self._uids.pop(owner.label, None)


def is_privileged(uid: int) -> bool:
    """Return whether this is root or the binder's own user: they can do to the binder what they want without asking."""
    return uid in (0, os.geteuid())
