"""What a process becomes: the command, the environment, and the listeners at their numbers.

``become`` also runs in a forked child, so nothing is imported there.
"""

import errno
import os
import signal

from multibinder.launch.styles import DEFAULT_STYLE, STYLES, placeholders
from multibinder.launch.styles.errors import StyleError
from multibinder.launch.styles.passed import FIRST_NUMBER, Passed, numbered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

    from multibinder.launch.styles import Style

#: Where a program without a slash is looked for if PATH is not set: confstr(3), _CS_PATH.
_USUAL_PATH = "/bin:/usr/bin"
#: Variables of sd_listen_fds(3). They are for one process, and the program is another one, or has other listeners.
_NEVER_PASSED_ON = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


class Draft:
    """What a process becomes, all but the PIDs.

    ``sockets`` are to be at their ``fd``; ``stdin`` is the one that becomes descriptor 0, or None. ``pid`` and
    ``parent_pid`` name the variables with these. ``warnings`` are sentences for the operator.
    """

    __slots__ = ("command", "environment", "parent_pid", "pid", "sockets", "stdin", "warnings")

    def __init__(
        self,
        command: "list[str]",
        environment: "dict[str, str]",
        sockets: "list[Passed]",
        stdin: "Passed | None" = None,
        pid: "Sequence[str]" = (),
        parent_pid: "Sequence[str]" = (),
        warnings: "Sequence[str]" = (),
    ) -> None:
        self.command = command
        self.environment = environment
        self.sockets = sockets
        self.stdin = stdin
        self.pid = tuple(pid)
        self.parent_pid = tuple(parent_pid)
        self.warnings = list(warnings)

    @property
    def moves(self) -> "list[tuple[int, int]]":
        """The descriptor that this process has of each socket, with the number that it needs."""
        moves = [(each.source, each.fd) for each in self.sockets]
        return moves if self.stdin is None else [*moves, (self.stdin.source, self.stdin.fd)]

    @property
    def first_free(self) -> int:
        """The lowest number above those that the sockets need. ``become`` overwrites what is open below it."""
        return max([FIRST_NUMBER, *(each.fd + 1 for each in self.sockets)])


def prepare(
    command: "Sequence[str]",
    environment: "Mapping[str, str]",
    sockets: "Sequence[Passed]",
    styles: "Sequence[str]" = (),
    variables: "Mapping[str, str] | None" = None,
    private: "Sequence[Passed]" = (),
) -> Draft:
    """Return what the process becomes. Raises StyleError.

    ``variables`` (``--env``) come over ``environment``. ``{NAME}`` in them and in the command is the descriptor of a
    socket, or of one of ``private``, which no style passes. Without ``styles``, listeners that ``{NAME}`` names are
    passed by their numbers alone; otherwise systemd's style is used. ``sockets`` come without their numbers.
    """
    variables = dict(variables or {})
    _check_texts(command, variables)
    sockets = numbered(sockets)
    private = numbered(private, FIRST_NUMBER + len(sockets))
    numbers = placeholders.numbers_of([*sockets, *private])
    texts = [*command, *variables.values()]
    named = placeholders.names_in(texts)
    if not styles and not named & placeholders.numbers_of(sockets).keys():
        styles = (DEFAULT_STYLE,)
    if not styles:
        _check_all_are_named(sockets, named)
    after = {name: value for name, value in environment.items() if name not in _NEVER_PASSED_ON}
    after |= {name: placeholders.fill(value, numbers) for name, value in variables.items()}
    pid: list[str] = []
    parent_pid: list[str] = []
    used = [_style(name) for name in dict.fromkeys(styles)]
    for style in used:
        style.check(sockets)
        after = {name: value for name, value in after.items() if not _is_own(name, style.own) or name in variables}
        after |= style.variables(sockets, after)
        pid += [style.pid] if style.pid else []
        parent_pid += [style.parent_pid] if style.parent_pid else []
    is_stdin = any(style.is_stdin for style in used)
    is_numbered = not used or any(style.is_numbered for style in used) or bool(named & numbers.keys())
    if not is_numbered and len(sockets) > 1:
        raise StyleError(
            f"the style stdin passes one listener, and there are {len(sockets)}: give another style beside it, or "
            "{NAME} in the arguments"
        )
    return Draft(
        command=[placeholders.fill(word, numbers) for word in command],
        environment=after,
        sockets=[*(sockets if is_numbered else ()), *private],
        stdin=Passed(sockets[0].slot, sockets[0].name, sockets[0].source, 0) if is_stdin else None,
        pid=pid,
        parent_pid=parent_pid,
        warnings=_left(texts, numbers),
    )


def become(draft: Draft, parent_pid: int) -> "NoReturn":
    """Move the sockets to their numbers, and execute the command in this process. Raises OSError if that fails.

    What is open at the numbers is closed, but not what else is open: descriptors above ``draft.first_free`` stay as
    they are. This imports nothing, for it also runs in a forked child.
    """
    environment = dict(draft.environment)
    for name in draft.pid:
        environment[name] = str(os.getpid())
    for name in draft.parent_pid:
        environment[name] = str(parent_pid)
    place(draft.moves)
    # Python ignores these two, and an ignored signal stays ignored across exec (signal(7)).
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    _execute(draft.command, environment)


def place(moves: "Sequence[tuple[int, int]]") -> None:
    """Give each descriptor its number. A descriptor may be at a number that another one needs. Raises OSError."""
    pending: dict[int, int] = {}
    takers: dict[int, list[int]] = {}
    for source, number in moves:
        if source == number:
            os.set_inheritable(number, True)
        else:
            pending[number] = source
            takers.setdefault(source, []).append(number)
    free = [number for number in pending if number not in takers]
    while pending:
        if not free:
            # Each is where another one belongs: one of them makes room. Its copy gets a free number (dup(2)), which is
            # none that is still needed: those are all open.
            number = next(iter(pending))
            aside = os.dup(number)
            takers[aside] = takers.pop(number)
            pending.update(dict.fromkeys(takers[aside], aside))
            free.append(number)
        number = free.pop()
        source = pending.pop(number)
        os.dup2(source, number, inheritable=True)
        takers[source].remove(number)
        if not takers[source]:
            del takers[source]
            if source in pending:
                free.append(source)


def find(program: str, environment: "Mapping[str, str]") -> str:
    """Return the file that ``become`` would execute. Raises the OSError that it would raise, as far as can be seen."""
    failure: OSError | None = None
    if "/" in program:
        os.stat(program)  # raises ENOENT, ENOTDIR, EACCES, ELOOP
    for candidate in _candidates(program, environment):
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
        if os.access(candidate, os.F_OK):
            failure = failure or PermissionError(errno.EACCES, os.strerror(errno.EACCES), candidate)
    raise failure or _not_found(program)


def _execute(command: "Sequence[str]", environment: "Mapping[str, str]") -> "NoReturn":
    """Do what execvp(3) does. Raises OSError with the name of the file that could not be executed."""
    program = command[0]
    failure: OSError | None = None
    for candidate in _candidates(program, environment):
        try:
            os.execve(candidate, list(command), dict(environment))
        except OSError as error:
            error.filename = candidate
            if error.errno == errno.ENOEXEC:
                # A script without '#!' is one of the shell (execvp(3)).
                os.execve("/bin/sh", ["/bin/sh", candidate, *command[1:]], dict(environment))
            is_missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
            if "/" in program or not (is_missing or error.errno == errno.EACCES):
                raise
            # The interpreter of a file that is there may be what is missing.
            if not is_missing or os.access(candidate, os.F_OK):
                failure = failure or error
    raise failure or _not_found(program)


def _candidates(program: str, environment: "Mapping[str, str]") -> "list[str]":
    if "/" in program or not program:
        return [program] if program else []
    path = environment.get("PATH", _USUAL_PATH)
    return [f"{directory or '.'}/{program}" for directory in path.split(":")]


def _not_found(program: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)


def _style(name: str) -> "Style":
    if name not in STYLES:
        raise StyleError(f"there is no style {name!r}: the styles are {', '.join(STYLES)}")
    return STYLES[name]


def _check_texts(command: "Sequence[str]", variables: "Mapping[str, str]") -> None:
    """Raise StyleError for what execve(2) has no form for."""
    if not command:
        raise StyleError("there is no command")
    if any("\0" in text for text in [*command, *variables, *variables.values()]):
        raise StyleError("the command or a variable has a NUL in it, which ends a text for the kernel")
    for name in variables:
        if not name or "=" in name:
            raise StyleError(f"{name!r} cannot be the name of a variable: write --env KEY=VALUE")


def _is_own(name: str, own: "Sequence[str]") -> bool:
    return any(name.startswith(each[:-1]) if each.endswith("*") else name == each for each in own)


def _check_all_are_named(sockets: "Sequence[Passed]", named: "set[str]") -> None:
    """Raise StyleError for a listener that the program would not know of: its clients would wait for ever."""
    for name, fd in placeholders.numbers_of(sockets).items():
        if name not in named:
            raise StyleError(_unused(f"{{{name}}}", next(str(each) for each in sockets if each.fd == fd)))
    for each in sockets:
        if not each.name:
            raise StyleError(_unused("a name (-b ADDRESS=NAME)", str(each)))


def _unused(what: str, socket: str) -> str:
    return (
        f"the program would not know of {socket}: the others are passed by {{NAME}}, so use {what} too, or say with "
        "--style how the program takes its listeners"
    )


def _left(texts: "Sequence[str]", numbers: "Mapping[str, int]") -> "list[str]":
    if numbers:
        return []
    found = placeholders.names_in(text for text in texts if placeholders.is_one(text))
    return [f"{{{name}}} stays as it is, because no -b has a name" for name in sorted(found)]
