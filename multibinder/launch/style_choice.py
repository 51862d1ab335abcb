"""Which styles a program gets, for ``exec`` and ``run``. Standard library alone."""

from multibinder.launch import known_programs
from multibinder.launch.styles import DEFAULT_STYLE, placeholders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def styles_for(
    styles: "Sequence[str]", command: "Sequence[str]", variables: "Mapping[str, str]", names: "Iterable[str]"
) -> "list[str]":
    """Return those that were asked for; else none if ``{NAME}`` is used, the program's own, or the default.

    ``names`` are those of the listeners.
    """
    if styles:
        return list(styles)
    if is_named(command, variables, names):
        return []
    return [known_programs.style_of(known_programs.program_of(command)) or DEFAULT_STYLE]


def is_named(command: "Sequence[str]", variables: "Mapping[str, str]", names: "Iterable[str]") -> bool:
    """Return whether the command or a variable names one of the listeners."""
    names = {name for name in names if name}
    return any(
        name in names or name.rpartition(".")[0] in names
        for name in placeholders.names_in([*command, *variables.values()])
    )
