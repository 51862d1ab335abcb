"""What ``exec`` was asked for."""

from multibinder.launch.known_programs import program_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    Slots = Sequence[Mapping[str, Any]]

#: The time for a binder that does not answer yet, if --wait says no other.
USUAL_WAIT_S = 10.0
#: A label has other characters than a file name may have (wire/options.py).
IN_LABEL = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.@/+-")
LABEL_CHARACTERS = 128


class Request:
    """The command line of ``exec``, checked. ``binds`` has the name and the slots of each ``-b``."""

    __slots__ = ("binds", "command", "owner", "path", "styles", "variables", "verbose", "wait_s")

    def __init__(
        self,
        path: str,
        binds: "Sequence[tuple[str, Slots]]",
        command: "Sequence[str]",
        styles: "Sequence[str]" = (),
        variables: "Mapping[str, str] | None" = None,
        owner: str = "",
        wait_s: float = USUAL_WAIT_S,
        verbose: bool = False,
    ) -> None:
        self.path = path
        self.binds = list(binds)
        self.command = list(command)
        self.styles = list(styles)
        self.variables = dict(variables or {})
        self.owner = owner or usual_owner(self.command)
        self.wait_s = wait_s
        self.verbose = verbose

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Request) and all(
            getattr(self, name) == getattr(other, name) for name in Request.__slots__
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Request({', '.join(f'{name}={getattr(self, name)!r}' for name in Request.__slots__)})"


def usual_owner(command: "Sequence[str]") -> str:
    """Return the owner label of a command: ``exec@gunicorn``, also for ``python3 -m gunicorn``."""
    name = program_of(command)
    usable = "".join(each if each in IN_LABEL else "_" for each in name)
    return f"exec@{usable}"[:LABEL_CHARACTERS]
