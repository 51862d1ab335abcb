"""nginx's own way, by which its master passes listeners to the next version of itself (SIGUSR2)."""

from multibinder.launch.styles.style import Style

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multibinder.launch.styles.passed import Passed


class Nginx(Style):
    """``NGINX="3;4;"``. Each ``listen`` of its configuration must be the address that a socket is bound to."""

    name = "nginx"
    own = ("NGINX",)

    def variables(self, sockets: "Sequence[Passed]", environment: "Mapping[str, str]") -> "dict[str, str]":
        return {"NGINX": "".join(f"{each.fd};" for each in sockets)}
