"""``{NAME}`` in an argument or a variable: the descriptor of the listener with this name."""

import re

from multibinder.launch.styles.errors import StyleError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from multibinder.launch.styles.passed import Passed

#: The expressions are texts, because most commands need none of them, and none is compiled at the import.
#: A text that is nothing but a placeholder and what leads to it, as ``--fd={web}``.
_IS_ONE = r"[^\s{}]*\{[A-Za-z_][A-Za-z0-9_.-]*\}"
#: A name in braces. ``${NAME}`` is a variable of a shell, and ``{{NAME}}`` belongs to a template: both stay.
_PLACEHOLDER = r"(?<![${])\{([A-Za-z_][A-Za-z0-9_.-]*)\}(?!\})"


def names_in(texts: "Iterable[str]") -> "set[str]":
    """Return the names that stand in braces in any of the texts."""
    return {name for text in texts if "{" in text for name in re.findall(_PLACEHOLDER, text)}


def numbers_of(sockets: "Sequence[Passed]") -> "dict[str, int]":
    """Return the descriptor of each name. Several of one name, as shards, are ``NAME.0``, ``NAME.1`` and so on."""
    by_name: dict[str, list[int]] = {}
    for each in sockets:
        if each.name:
            by_name.setdefault(each.name, []).append(each.fd)
    numbers = {name: fds[0] for name, fds in by_name.items() if len(fds) == 1}
    for name, fds in by_name.items():
        if len(fds) > 1:
            for index, fd in enumerate(fds):
                numbers.setdefault(f"{name}.{index}", fd)
    return numbers


def fill(text: str, numbers: "Mapping[str, int]") -> str:
    """Return the text with the descriptor for each name in braces. Raises StyleError for a name that is unknown.

    In a longer text, as a program for ``sh -c`` or ``python -c``, other braces are the program's own; and in every text
    if there is no name to know.
    """
    if not numbers or "{" not in text:
        return text

    def number(found: "re.Match[str]") -> str:
        if found[1] in numbers:
            return str(numbers[found[1]])
        if f"{found[1]}.0" in numbers:
            several = ", ".join(f"{{{name}}}" for name in numbers if name.rpartition(".")[0] == found[1])
            raise StyleError(f"{{{found[1]}}} stands for several listeners: name each of them: {several}")
        if not is_one(text):
            return found[0]
        known = ", ".join(f"{{{name}}}" for name in numbers)
        raise StyleError(
            f"{{{found[1]}}} names no listener: there is {known}. If the program needs the braces itself, start it by "
            "a script, or give no -b a name"
        )

    return re.sub(_PLACEHOLDER, number, text)


def is_one(text: str) -> bool:
    """Return whether a text looks as if it were written for a placeholder alone."""
    return "{" in text and re.fullmatch(_IS_ONE, text) is not None
