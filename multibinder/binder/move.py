"""Move claims from one user to another: a service whose user has changed keeps its listeners."""

from __future__ import annotations

from multibinder.binder import events
from multibinder.binder.caller import Caller
from multibinder.binder.owner import Owner, is_privileged
from multibinder.binder.policy_in_force import PolicyInForce, spec_at
from multibinder.binder.store import ListenerStore
from multibinder.wire import messages
from multibinder.wire.errors import RequestError
from multibinder.wire.messages import Moved, Request
from multibinder.wire.move_params import decode_move_params


def move(store: ListenerStore, policy: PolicyInForce, request: Request, caller: Caller) -> list[Moved]:
    """Give the claims and names of each owner in the request to another uid. The policy must allow their release.

    Raises InvalidParamsError, NotAllowed, and RequestError if the client is neither root nor the binder's own user.
    """
    moves = [(Owner.parse(each.owner), each.to) for each in decode_move_params(request.params)]
    if not is_privileged(caller.uid):
        raise RequestError(
            f"uid {caller.uid} may not move claims from one user to another: only root and the binder's own user may",
            messages.NOT_ALLOWED,
        )
    for owner, _ in moves:
        for listener in store.owned_by(owner):
            policy.require_allowed_for(caller, "release", spec_at(listener), listener)
    outcomes: list[Moved] = []
    for owner, uid in moves:
        addresses = [str(listener.address) for listener in store.move(owner, uid)]
        events.info("moved", owner=owner, to=uid, listeners=len(addresses), pid=caller.pid, uid=caller.uid)
        outcomes.append(Moved(str(owner), uid, addresses))
    return outcomes
