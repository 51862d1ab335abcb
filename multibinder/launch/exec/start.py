"""Get the listeners, and become the program."""

import os
import resource

from multibinder.launch import known_programs
from multibinder.launch.direct.client import obtain
from multibinder.launch.direct.slots import key_of
from multibinder.launch.exec import environment, failure, inherited
from multibinder.launch.exec.errors import CommandFailed
from multibinder.launch.styles import DEFAULT_STYLE, draft, placeholders
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
    styles = _styles(request, say)
    unbound = [Passed(slot, name, -1) for name, slots in request.binds for slot in slots]
    made = draft.prepare(request.command, callers, unbound, styles, request.variables)
    _check_command(made)
    for warning in _warnings(request, unbound, styles):
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
        for each in made.sockets:
            say("info", f"descriptor {each.fd}: {each}")
        if made.stdin is not None:
            say("info", f"descriptor 0: {made.stdin}")
    try:
        draft.become(made, os.getppid())
    except OSError as error:
        raise CommandFailed(failure.sentence(error, made.command[0]), failure.exit_code(error)) from None


def _styles(request: "Request", say: "Callable[[str, str], None]") -> "list[str]":
    """Return the styles to use: those that were asked for, else the one of a known program."""
    if request.styles:
        return request.styles
    if _is_named(request):
        if request.verbose:
            say("info", "no style: the arguments name the descriptors")
        return []
    program = known_programs.program_of(request.command)
    known = known_programs.style_of(program)
    if request.verbose:
        why = f"{program} is known to take no other" if known else "the default"
        say("info", f"style {known or DEFAULT_STYLE}: {why}")
    return [known] if known else [DEFAULT_STYLE]


def _is_named(request: "Request") -> bool:
    named = placeholders.names_in([*request.command, *request.variables.values()])
    names = {name for name, _ in request.binds if name}
    return any(name in names or name.rpartition(".")[0] in names for name in named)


def _warnings(request: "Request", sockets: "list[Passed]", styles: "list[str]") -> "list[str]":
    warning = known_programs.warning_about(request.command, sockets, styles, _is_named(request))
    return [warning] if warning else []


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
