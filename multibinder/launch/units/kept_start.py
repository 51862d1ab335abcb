"""Start the server of a systemd unit on the listeners that the binder keeps for it.

Without them it is started as it is, and opens its ports itself. A failure of the binder or of this installation never
keeps it from its start.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from multibinder.kernel import process
from multibinder.launch.binds import slot_of
from multibinder.launch.exec import environment, inherited
from multibinder.launch.style_choice import styles_for
from multibinder.launch.styles import draft
from multibinder.launch.styles.errors import StyleError
from multibinder.launch.styles.passed import Passed
from multibinder.launch.units.kept import Passing, held, owner_of, release, spec_of
from multibinder.wire.client import Client
from multibinder.wire.errors import BindError, BinderTimeout, BinderUnavailable, MultibinderError
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.shared_listener import SharedListener

#: A binder that is started again is waited for: while it is away, the kernel keeps its ports, and the server could not
#: open them.
_WAIT_S = 10.0
_LOOK_S = 0.02

Say = Callable[[str, str], None]


def start(passing: Passing, command: Sequence[str], socket_path: str, say: Say) -> None:
    """Become the server, or return when it is up if the unit's way is to fork. ``say`` gets a level and a sentence.

    If a server that forks ends at once on the listeners, they are released, and it is started without them: an address
    in its configuration may overlap with one of them. Raises OSError if the command cannot be executed.
    """
    callers = environment.callers()
    sockets: list[SharedListener] = []
    try:
        sockets = _obtain(passing, socket_path, say)
        made = _draft(passing, command, callers, sockets) if sockets else None
    except (MultibinderError, StyleError, OSError) as error:
        say("warning", f"{passing.unit} starts without the listeners that the binder may keep for it: {error}")
        made = None
    if made is None:
        _close(sockets)
        _become_as_it_is(command, callers)
    if not passing.forks:
        _keep_sockets_of_caller_from_program(callers)
        draft.become(made, os.getppid())
    status = _start_beside(passing, made)
    _close(sockets)
    if status is None:
        return
    say(
        "warning",
        f"{passing.unit}: {command[0]} ended with {status} on the listeners of the binder; they are closed, and it is "
        "started without them",
    )
    try:
        with Client(socket_path) as binder:
            release(binder, passing.unit)
    except MultibinderError as error:
        say("warning", f"{passing.unit}: its listeners are not closed: {error}")
    _become_as_it_is(command, callers)


def _obtain(passing: Passing, socket_path: str, say: Say) -> list[SharedListener]:
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            with Client(socket_path) as binder:
                uid = binder.hello().uid
                us = os.geteuid() if uid is None else uid
                specs = [spec_of(listener) for listener, claim in held(binder, passing.unit) if claim.uid == us]
                return _bind(binder, owner_of(passing.unit), specs, say) if specs else []
        except (BinderUnavailable, BinderTimeout):
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_S)


def _bind(binder: Client, owner: str, specs: Sequence[ListenerSpec], say: Say) -> list[SharedListener]:
    """Return the listeners, without those that the binder cannot give: a Unix path that the server has removed at its
    end, and that the binder may not create. These are released, because the server opens them itself then."""
    try:
        return binder.bind(specs, owner=owner)
    except BindError:
        sockets: list[SharedListener] = []
        for spec in specs:
            try:
                sockets += binder.bind([spec], owner=owner)
            except BindError as error:
                say("warning", f"{error}; the server opens it itself")
                binder.release([spec], owner=owner)
        return sockets


def _draft(
    passing: Passing, command: Sequence[str], callers: dict[str, str], sockets: Sequence[SharedListener]
) -> draft.Draft:
    styles = styles_for(passing.styles, command, {}, [])
    specs = (ListenerSpec(each.address, shard=each.shard, netns=each.netns) for each in sockets)
    passed = [Passed(slot_of(spec), "", each.fileno()) for spec, each in zip(specs, sockets, strict=True)]
    made = draft.prepare(command, callers, passed, styles)
    draft.find(made.command[0], made.environment)
    return made


def _start_beside(passing: Passing, made: draft.Draft) -> int | None:
    """Start the server as a child, as one that has put itself into the background. Return None when it is up.

    If it ends before, return its exit status. systemd limits the time (TimeoutStartSec=).
    """
    pid = os.fork()
    if pid == 0:
        _become_child(made)
    while not _is_up(pid, passing.pid_file):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(_LOOK_S)
    return None


def _become_child(made: draft.Draft) -> NoReturn:
    try:
        # What daemon() of nginx does, which it leaves out on listeners that it inherits.
        os.setsid()
        os.umask(0)
        draft.become(made, os.getppid())
    except OSError as error:
        os.write(2, f"multibinder: {made.command[0]}: {(error.strerror or str(error)).lower()}\n".encode())
    finally:
        os._exit(126)


def _is_up(pid: int, pid_file: str) -> bool:
    """Return whether the server has written its PID, and has a worker."""
    if pid_file:
        try:
            with open(pid_file, encoding="ascii", errors="replace") as file:
                if file.read().strip() != str(pid):
                    return False
        except OSError:
            return False
    return any(map(process.is_alive, process.children_of(pid)))


def _become_as_it_is(command: Sequence[str], callers: dict[str, str]) -> NoReturn:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.execvpe(command[0], list(command), callers)


def _keep_sockets_of_caller_from_program(callers: dict[str, str]) -> None:
    inherited.keep_from_program(inherited.sockets_of_caller(callers))


def _close(sockets: Sequence[SharedListener]) -> None:
    for each in sockets:
        each.close()
