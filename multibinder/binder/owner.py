"""Owners of claims: a label, and the uid that the label belongs to."""

from __future__ import annotations

import os

import msgspec

from multibinder.wire.errors import RequestError
from multibinder.wire.messages import NOT_ALLOWED

#: The binder never changes its user.
OUR_UID = os.geteuid()
#: The uid, and the gid, of clients whose own ones tell nothing (``Caller``). No range of uids that is in use for users,
#: containers or services reaches so far (UIDS-GIDS.md of systemd).
GUEST_UID = 4_000_000_001


class Owner(msgspec.Struct, frozen=True):
    """A label and the uid that it belongs to. Each uid has labels of its own; the empty one is for clients without one.

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
    """Count the claims of each uid."""

    def __init__(self) -> None:
        self._by_uid: dict[int, int] = {}

    def of_uid(self, uid: int) -> int:
        """Return the number of claims that all owners of this uid have."""
        return self._by_uid.get(uid, 0)

    def add(self, owner: Owner) -> None:
        self._by_uid[owner.uid] = self._by_uid.get(owner.uid, 0) + 1

    def remove(self, owner: Owner) -> None:
        self._by_uid[owner.uid] -= 1
        if not self._by_uid[owner.uid]:
            del self._by_uid[owner.uid]


def owner_named(text: str, uid: int) -> Owner:
    """Return the owner that a client of ``uid`` names: a label of its own, or ``label:uid``.

    Raises RequestError if it names another uid, and is neither root nor the binder's own user.
    """
    if ":" not in text:
        return Owner(text, uid)
    owner = Owner.parse(text)
    if owner.uid != uid and not is_privileged(uid):
        raise RequestError(
            f"owner {text} belongs to uid {owner.uid}, not to uid {uid}: only root and the binder's own user may "
            "name it; leave the uid out for your own",
            NOT_ALLOWED,
        )
    return owner


def is_privileged(uid: int) -> bool:
    """Return whether this is root or the binder's own user. Both can control the binder's process directly anyway."""
    return uid in (0, OUR_UID)
