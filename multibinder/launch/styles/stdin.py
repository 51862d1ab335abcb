"""The listener as standard input, as inetd passes one ("wait"): Java's inheritedChannel, uWSGI."""

from multibinder.launch.styles.errors import StyleError
from multibinder.launch.styles.style import Style

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from multibinder.launch.styles.passed import Passed


class Stdin(Style):
    """Descriptor 0. There is one, so it is the first listener; further ones need another style beside this one."""

    name = "stdin"
    is_stdin = True
    is_numbered = False

    def check(self, sockets: "Sequence[Passed]") -> None:
        if not sockets:
            raise StyleError("the style stdin needs a listener: give one with -b")
