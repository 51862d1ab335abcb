"""Apply what a request asks for to listeners that exist, and grant the handoffs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from multibinder.binder import live_options
from multibinder.binder.bind_attempt import Found
from multibinder.binder.bind_refusal import refused_by_kernel
from multibinder.binder.claims import Claims
from multibinder.binder.handoffs import Handoffs
from multibinder.binder.listener import Grant, Listener, Receiver, Setting
from multibinder.binder.listener_index import ListenerIndex
from multibinder.binder.owner import Owner
from multibinder.wire.kinds import OptionError
from multibinder.wire.messages import ListenerSpec


class Granting:
    """Grant listeners of ``index`` to the owners of a request."""

    def __init__(self, index: ListenerIndex, claims: Claims, handoffs: Handoffs) -> None:
        self._index = index
        self._claims = claims
        self._handoffs = handoffs

    def apply_options(
        self, found: Sequence[Found], specs: Sequence[ListenerSpec], owners: Sequence[Owner]
    ) -> list[dict[str, Setting]]:
        """Set the live options that each element asks for. Return the former ones of each, which it has changed.

        Raises BindError; then nothing has changed.
        """
        former: list[dict[str, Setting]] = []
        try:
            for (listener, created), spec, owner in zip(found, specs, owners, strict=True):
                former.append({} if created else live_options.apply(listener, spec.options, owner))
        except OptionError as error:
            failed = found[len(former)].listener
            for (listener, _), was in reversed(list(zip(found, former, strict=False))):
                live_options.restore(listener, was)
            raise refused_by_kernel(failed.address, error) from error
        return former

    def grant(
        self, listener: Listener, owner: Owner, receiver: Receiver, former: dict[str, Any], *, created: bool
    ) -> Grant:
        """Count one more handoff in the claim of ``owner``. ``former`` is what it changes, as it was before."""
        listener.handoffs += 1
        listener.last_handoff_at = time.monotonic()
        listener.received_by = receiver.pid
        self._claims.grant(listener, owner)
        grant = Grant(listener, owner, listener.handoffs, created, listener.backlog_warning(), receiver, former)
        self._handoffs.add(grant)
        return grant

    def identify(self, listener: Listener, name: str | None, uid: int, *, is_outside: bool) -> dict[str, Any]:
        """Give an existing listener the name that ``uid`` asks for, and note a process outside our PID namespace.

        Returns what has changed, as it was before. What a pending grant has changed counts as changed, too.
        """
        former: dict[str, Any] = {}
        if name:
            has = (listener.options.name, listener.name_uid)
            if has != (name, uid):
                self._index.rename(listener, name, uid)
            if has != (name, uid) or _is_pending(listener, "name"):
                former["name"] = has
        if is_outside:
            has_been = listener.held_outside_pid_namespace
            listener.held_outside_pid_namespace = True
            if not has_been or _is_pending(listener, "held_outside_pid_namespace"):
                former["held_outside_pid_namespace"] = has_been
        return former


def _is_pending(listener: Listener, change: str) -> bool:
    return any(change in grant.former for grant in listener.pending)
