"""Get the listeners, and become the program."""

import os
import resource

from multibinder.launch import known_programs
from multibinder.launch.direct.client import obtain
from multibinder.launch.direct.slots import key_of
from multibinder.launch.exec import environment, failure, inherited
from multibinder.launch.exec.errors import CommandFailed
from multibinder.launch.style_choice import is_named, styles_for
from multibinder.launch.styles import draft
from multibinder.launch.styles.passed import Passed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

    from multibinder.launch.exec.request import Request

#: The program can open so many files more, or it gets the raised limit.
_ROOM = 24


def start(request: "Request", say: "Callable[[str, str], None]") -> "NoReturn":
    """Become the program. ``say`` is called with ``warning`` or ``info``, and a sentence.

    Whatever can be found out without the binder comes first: a listener that is bound for a command with a mistake
    would be open, and served by no process. Raises Refused, Away, StyleError, CommandFailed, OSError.
    """
    callers = environment.callers()
    names = [name for name, _ in request.binds]
    styles = styles_for(request.styles, request.command, request.variables, names)
    unbound = [Passed(slot, name, -1) for name, slots in request.binds for slot in slots]
    made = draft.prepare(request.command, callers, unbound, styles, request.variables)
    _check_command(made)
    named = is_named(request.command, request.variables, names)
    if warning := known_programs.warning_about(request.command, unbound, styles, named):
        say("warning", warning)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    slots = [each.slot for each in unbound]
    descriptors, warnings = obtain(request.path, slots, request.owner, request.wait_s)
    for warning in dict.fromkeys(warnings):  # shards have the same
        say("warning", warning)
    sockets = [Passed(each.slot, each.name, descriptors[key_of(each.slot)]) for each in unbound]
    made = draft.prepare(request.command, callers, sockets, styles, request.variables)
    for warning in made.warnings:
        say("warning", warning)
    _make_room(made, callers, say)
    _restore_limit(limit, made, say)
    if request.verbose:
        _say_style(request, styles, say)
        for each in made.sockets:
            say("info", f"descriptor {each.fd}: {each}")
        if made.stdin is not None:
            say("info", f"descriptor 0: {made.stdin}")
    try:
        draft.become(made, os.getppid())
    except OSError as error:
        raise CommandFailed(failure.sentence(error, made.command[0]), failure.exit_code(error)) from None


def _say_style(request: "Request", styles: "list[str]", say: "Callable[[str, str], None]") -> None:
    if request.styles:
        return
    program = known_programs.program_of(request.command)
    if not styles:
        say("info", "no style: the arguments name the descriptors")
    elif known_programs.style_of(program):
        say("info", f"style {styles[0]}: {program} is known to take no other")
    else:
        say("info", f"style {styles[0]}: the default")


def _check_command(made: "draft.Draft") -> None:
    """Raise CommandFailed if the command cannot be executed, as far as that is seen without doing it."""
    try:
        draft.find(made.command[0], made.environment)
    except OSError as error:
        raise CommandFailed(failure.sentence(error, made.command[0]), failure.exit_code(error)) from None


def _make_room(made: "draft.Draft", callers: "Mapping[str, str]", say: "Callable[[str, str], None]") -> None:
    """Say which descriptors of the caller the sockets replace. Those of its LISTEN_FDS were for this process alone."""
    its_sockets = inherited.sockets_of_caller(callers)
    sources = {source for source, _ in made.moves}
    inherited.keep_from_program([fd for fd in its_sockets if fd not in sources])
    numbers = {number for _, number in made.moves if number > 2} - sources
    for number, what in inherited.in_the_way(numbers):
        say(
            "warning",
            f"descriptor {number} of the caller ({what}) is closed: a listener has this number in the program",
        )


def _restore_limit(limit: "Any", made: "draft.Draft", say: "Callable[[str, str], None]") -> None:
    """Give the program the caller's limit of open files, if the listeners leave it room there."""
    now = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now == limit:
        return
    if limit[0] >= made.first_free + _ROOM:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    else:
        say("warning", f"the limit of open files is {now[0]} instead of {limit[0]}, because the listeners need as many")
