"""Remove claims, and move them from one user to another, with the names that belong to their users."""

from __future__ import annotations

from multibinder.binder import events, live_options
from multibinder.binder.listener import Claim, Listener
from multibinder.binder.listener_index import ListenerIndex
from multibinder.binder.owner import ClaimCounts, Owner


def claims_to_drop(listener: Listener, owner: Owner, *, of_any_uid: bool) -> list[Owner]:
    """Return the claims that a release by ``owner`` drops.

    ``of_any_uid``: if that owner has no claim, these are the claims of all other users that have the same label.
    """
    dropped = [claimant for claimant in listener.claims if claimant == owner]
    if not dropped and of_any_uid:
        is_all = listener.draining and not owner.label  # ``list`` shows no owner that could be named
        dropped = [claimant for claimant in listener.claims if is_all or claimant.label == owner.label]
    return dropped


class Claims:
    """The claims to the listeners of ``index``, counted for each uid."""

    def __init__(self, index: ListenerIndex) -> None:
        self._index = index
        self._counts = ClaimCounts()

    def of_uid(self, uid: int) -> int:
        """Return the number of claims that all owners of this uid have."""
        return self._counts.of_uid(uid)

    def restore(self, listener: Listener) -> None:
        """Count the claims of a listener that was restored with them."""
        for owner in listener.claims:
            self._counts.add(owner)

    def grant(self, listener: Listener, owner: Owner) -> None:
        """Count the listener's last handoff in the claim of ``owner``, which is made if there is none."""
        claim = listener.claims.get(owner)
        if claim is None:
            claim = listener.claims[owner] = Claim(listener.handoffs)
            self._counts.add(owner)
        claim.handoffs += 1

    def remove(self, listener: Listener, owner: Owner) -> None:
        """Remove an owner's claim, and take off the options that it has set. The listener stays open."""
        self._remove(listener, owner)
        live_options.take_off(listener, owner)

    def remove_all(self, listener: Listener) -> None:
        """Remove the claims of all owners, of a listener that ends or that another owner takes over."""
        for owner in list(listener.claims):
            self._remove(listener, owner)

    def move(self, listener: Listener, owner: Owner, to: Owner) -> None:
        """Give the claim of ``owner``, and its name, to another owner, who may have a claim already."""
        claim = listener.claims.pop(owner)
        live_options.give_to(listener, owner, to)
        for grant in listener.pending:
            grant.owner = to if grant.owner == owner else grant.owner
        self._counts.remove(owner)
        if (existing := listener.claims.get(to)) is not None:
            existing.since = min(existing.since, claim.since)
            existing.handoffs += claim.handoffs
            existing.unconfirmed += claim.unconfirmed
        else:
            listener.claims[to] = claim
            self._counts.add(to)
        name = listener.options.name
        if name and listener.name_uid == owner.uid and all(each.uid != owner.uid for each in listener.claims):
            is_taken = self._index.named(to.uid, name) is not None
            if is_taken:
                events.warning("name-taken", address=listener.address, called=name, uid=to.uid)
            self._index.rename(listener, None if is_taken else name, to.uid)

    def _remove(self, listener: Listener, owner: Owner) -> None:
        del listener.claims[owner]
        self._counts.remove(owner)
        if listener.claims and all(claimant.uid != listener.name_uid for claimant in listener.claims):
            # No other user may keep this name from its uid, or be found by it.
            self._index.rename(listener, None, 0)
