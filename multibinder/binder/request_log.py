"""Log what requests did: listeners that were opened, handed over and released."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from multibinder.binder import events
from multibinder.binder.caller import Caller
from multibinder.binder.listener import Grant
from multibinder.binder.owner import Owner
from multibinder.wire.messages import Released

#: A request that opens or releases more listeners than this gets one line with their number.
_LINES_OF_A_REQUEST = 20


def log_grants(grants: Sequence[Grant], caller: Caller) -> None:
    """Log the listeners that a request has opened; at debug level, those that it was handed, too."""
    created = [grant for grant in grants if grant.created]
    if not created and not events.logger.isEnabledFor(logging.DEBUG):
        return
    if len(created) > _LINES_OF_A_REQUEST:
        _log_many("bound", [str(grant.listener.address) for grant in created], created[0].owner, caller)
    else:
        for grant in created:
            _log_grant(events.info, "bound", grant, caller)
    if len(created) < len(grants) and events.logger.isEnabledFor(logging.DEBUG):
        for grant in grants:
            if not grant.created:
                _log_grant(events.debug, "handed-over", grant, caller)
    for grant in grants:
        if grant.warning and grant.created:
            events.limited(
                events.warning, "backlog-capped", caller.uid, address=grant.listener.address, why=grant.warning
            )


def log_releases(outcomes: Sequence[Released], owners: Sequence[Owner], caller: Caller) -> None:
    """Log the listeners that a request has released."""
    released = [
        (outcome, owner)
        for outcome, owner in zip(outcomes, owners, strict=True)
        if outcome.outcome != "absent" and outcome.had_claim
    ]
    if len(released) > _LINES_OF_A_REQUEST:
        _log_many("released", [outcome.address for outcome, _ in released], released[0][1], caller)
    else:
        for outcome, owner in released:
            events.limited(
                events.info,
                "released",
                caller.uid,
                address=outcome.address,
                owner=owner.label or "-",
                outcome=outcome.outcome,
                **({"reset": outcome.reset} if outcome.reset else {}),
                pid=caller.pid,
                uid=caller.uid,
            )
    if absent := [outcome.address for outcome in outcomes if outcome.outcome == "absent"]:
        events.limited(
            events.debug,
            "released-absent",
            caller.uid,
            count=len(absent),
            first=absent[0],
            pid=caller.pid,
            uid=caller.uid,
        )


def _log_grant(emit: events.Emit, name: str, grant: Grant, caller: Caller) -> None:
    events.limited(
        emit,
        name,
        caller.uid,
        address=grant.listener.address,
        owner=grant.owner.label or "-",
        backlog=grant.backlog,
        pid=caller.pid,
        uid=caller.uid,
    )


def _log_many(name: str, addresses: Sequence[str], owner: Owner, caller: Caller) -> None:
    events.limited(
        events.info,
        name,
        caller.uid,
        count=len(addresses),
        first=addresses[0],
        last=addresses[-1],
        owner=owner.label or "-",
        pid=caller.pid,
        uid=caller.uid,
    )
