"""Bind in this process, for a program that runs without a binder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from multibinder.wire import kinds, messages
from multibinder.wire.errors import BindError, errname
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.shared_listener import SharedListener


def bind_here(specs: Sequence[ListenerSpec], inheritable: bool) -> list[SharedListener]:
    """Bind all of them and listen, or raise BindError and leave none open. The caller owns the sockets."""
    with contextlib.ExitStack() as undo:
        sockets: list[SharedListener] = []
        for spec in specs:
            try:
                kind = kinds.of_address(spec.address)
                with kind.open(spec.address, spec.options) as plain:
                    kind.make_ready(plain, spec.options.backlog)
                    sock = undo.enter_context(SharedListener(fileno=plain.detach()))
                sock.set_inheritable(inheritable)
            except OSError as error:
                number = error.errno or 0
                raise BindError(
                    f"Could not bind: {spec.address}: {os.strerror(number)}",
                    messages.COULD_NOT_BIND,
                    {"errno": number, "errname": errname(number), "address": str(spec.address)},
                ) from error
            sockets.append(sock)
        undo.pop_all()
    return sockets
