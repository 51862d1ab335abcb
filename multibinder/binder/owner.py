"""Owners of claims: a label, and the uid that the label belongs to."""

from __future__ import annotations

import os

import msgspec

from multibinder.wire.errors import RequestError
from multibinder.wire.messages import NOT_ALLOWED


class Owner(msgspec.Struct, frozen=True):
    """A label and the uid that it belongs to. The label is empty for clients that give none; each uid has its own.

    ``str()`` prints what ``parse`` reads: ``haproxy@web:107``. A label never has a colon.
    """

    label: str
    uid: int

    @staticmethod
    def parse(text: str) -> Owner:
        label, colon, uid = text.rpartition(":")
        return Owner(label, int(uid)) if colon and uid.isdecimal() else Owner(text, 0)

    def __str__(self) -> str:
        return f"{self.label}:{self.uid}"


class ClaimCounts:
    """Count the listeners that each owner has a claim to. A label belongs to one uid while it has any claim."""

    def __init__(self) -> None:
        self._by_owner: dict[Owner, int] = {}
        self._by_uid: dict[int, int] = {}
        self._uid_of_label: dict[str, int] = {}

    def resolve(self, label: str, uid: int) -> Owner:
        """Return the owner that a client of ``uid`` is when it gives ``label``.

        Root and the binder's own user may use every label, which stays with its uid. Raises RequestError if the
        label belongs to another uid.
        """
        holder = self._uid_of_label.get(label) if label else None
        if holder is None or holder == uid:
            return Owner(label, uid)
        if is_privileged(uid):
            return Owner(label, holder)
        raise RequestError(
            f"the owner label {label} belongs to uid {holder}, not to uid {uid}; choose another label", NOT_ALLOWED
        )

    def of_uid(self, uid: int) -> int:
        """Return the number of claims that all owners of this uid have."""
        return self._by_uid.get(uid, 0)

    def add(self, owner: Owner) -> None:
        self._by_owner[owner] = self._by_owner.get(owner, 0) + 1
        self._by_uid[owner.uid] = self._by_uid.get(owner.uid, 0) + 1
        if owner.label:
            self._uid_of_label[owner.label] = owner.uid

    def remove(self, owner: Owner) -> None:
        """Remove one claim. After the last claim of a label, any uid may use the label."""
        self._by_uid[owner.uid] -= 1
        if not self._by_uid[owner.uid]:
            del self._by_uid[owner.uid]
        self._by_owner[owner] -= 1
        if not self._by_owner[owner]:
            del self._by_owner[owner]
            self._uid_of_label.pop(owner.label, None)


def is_privileged(uid: int) -> bool:
    """Return whether this is root or the binder's own user. Both can control the binder's process directly anyway."""
    return uid in (0, os.geteuid())
