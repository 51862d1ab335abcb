"""Ask for listeners over one connection, and receive them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from multibinder.wire.connection import Connection
from multibinder.wire.errors import BinderUnavailable
from multibinder.wire.listener import NotListening, close_all, verify_all_received
from multibinder.wire.listener_params import ListenerParams
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.old_binders import require_no_ruby
from multibinder.wire.options import check_optional_owner
from multibinder.wire.reception import Reception
from multibinder.wire.shared_listener import SharedListener


def params_of(specs: Sequence[ListenerSpec], owner: str) -> list[ListenerParams]:
    """Return the elements of a request. Raises AddressError for a wrong label."""
    check_optional_owner(owner)
    return [ListenerParams.of(spec, owner) for spec in specs]


class BindExchange:
    """A request for listeners, which a session may make a second time, over another connection.

    ``timeout`` is only named in messages; ``stacklevel`` is that of the caller's line, for warnings.
    """

    def __init__(
        self, specs: Sequence[ListenerSpec], owner: str, inheritable: bool, timeout: float, stacklevel: int
    ) -> None:
        self._specs = specs
        self._owner = owner
        self._inheritable = inheritable
        self._timeout = timeout
        self._stacklevel = stacklevel
        self._tries = 0

    def __call__(self, connection: Connection, deadline: float) -> list[SharedListener]:
        """Return the listeners, which the caller owns; none is open if an error, or a warning, is raised.

        Raises BinderUnavailable if a binder that stops has taken a listener back: the next one is to be asked.
        """
        self._tries += 1
        sockets: list[SharedListener] = []
        try:
            while len(sockets) < len(self._specs):
                # A binder answers for the whole list. The Ruby program binds only the first of it and answers true.
                sockets += self._ask(connection, self._specs[len(sockets) :], deadline)
            if self._inheritable:
                for sock in sockets:
                    sock.set_inheritable(True)
        except NotListening as error:
            close_all(sockets)
            if self._tries > 1:
                raise
            raise BinderUnavailable(
                f"the binder at {connection.path} took its listeners back before it knew that they had arrived: {error}"
            ) from error
        except BaseException:
            close_all(sockets)
            raise
        return sockets

    def _ask(self, connection: Connection, wanted: Sequence[ListenerSpec], deadline: float) -> list[SharedListener]:
        params = params_of(wanted, self._owner)
        reply = connection.ask("bind", params, self._timeout, deadline, acknowledge=True)
        require_no_ruby(reply, wanted)
        sockets: list[SharedListener] = []
        try:
            with Reception(connection, reply, len(wanted)) as reception:
                descriptors = reception.descriptors(self._timeout, deadline)
                sockets += verify_all_received(descriptors, wanted[: len(descriptors)])
                for each in reception.handoffs:
                    if each.warning:
                        warnings.warn(f"{each.address}: {each.warning}", RuntimeWarning, stacklevel=self._stacklevel)
        except BaseException:
            close_all(sockets)
            raise
        return sockets
