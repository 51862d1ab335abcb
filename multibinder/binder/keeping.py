"""Store in the keeper what it does not have yet."""

from __future__ import annotations

from collections.abc import Collection

from multibinder.binder.control_socket import ControlSocket
from multibinder.binder.keeper import Keeper
from multibinder.binder.store import ListenerStore


def keep_the_rest(keeper: Keeper | None, control: ControlSocket, store: ListenerStore) -> None:
    """Store the control socket, and the listeners that the keeper could not take before."""
    if keeper is None:
        return
    # A client that connects while we are dead waits in the queue of the kept control socket.
    keeper.keep(control.for_keeper(), lambda kept: None)
    if not_kept := [listener for listener in store.listeners() if not listener.kept]:

        def confirmed(kept: Collection[str]) -> None:
            for listener in not_kept:
                listener.note_kept(kept)

        keeper.keep([listener.for_keeper() for listener in not_kept], confirmed)
