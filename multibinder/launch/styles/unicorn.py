"""Unicorn's own way, by which it executes its next version (SIGUSR2)."""

from multibinder.launch.styles.style import Style

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multibinder.launch.styles.passed import Passed


class Unicorn(Style):
    """``UNICORN_FD="3,4"``."""

    name = "unicorn"
    own = ("UNICORN_FD",)

    def variables(self, sockets: "Sequence[Passed]", environment: "Mapping[str, str]") -> "dict[str, str]":
        return {"UNICORN_FD": ",".join(str(each.fd) for each in sockets)}
