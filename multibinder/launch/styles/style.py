"""The base of all styles."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multibinder.launch.styles.passed import Passed


class Style:
    """A way in which programs are told of the listeners that they inherit. Each is a subclass in a module of its own.

    The sockets have their numbers of the program (``Passed.fd``): 3 and those after it, in the order of ``-b``.
    """

    #: What ``--style`` calls it.
    name = ""
    #: Its variables. A value of the caller's is not passed on. ``*`` at the end stands for all with this beginning.
    own: "tuple[str, ...]" = ()
    #: The variable with the PID of the program, and the one with the PID of its parent. Empty for none.
    pid = ""
    parent_pid = ""
    #: Whether the first socket becomes descriptor 0.
    is_stdin = False
    #: Whether the program finds the sockets at their numbers.
    is_numbered = True

    def check(self, sockets: "Sequence[Passed]") -> None:
        """Raise StyleError if programs cannot take these sockets in this way."""

    def variables(self, sockets: "Sequence[Passed]", environment: "Mapping[str, str]") -> "dict[str, str]":
        """Return the variables, but for those with a PID. ``environment`` is the rest of what the program gets."""
        return {}
