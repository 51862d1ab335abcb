"""Puma's own way, by which it restarts itself. Its ``bind`` must have the same URL."""

from multibinder.launch.styles.style import Style

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multibinder.launch.styles.passed import Passed


class Puma(Style):
    """``PUMA_INHERIT_0="3:tcp://127.0.0.1:9292"``, ``PUMA_INHERIT_1="4:unix:///run/app.sock"``."""

    name = "puma"
    own = ("PUMA_INHERIT_*",)

    def variables(self, sockets: "Sequence[Passed]", environment: "Mapping[str, str]") -> "dict[str, str]":
        return {f"PUMA_INHERIT_{index}": f"{each.fd}:{_url(each)}" for index, each in enumerate(sockets)}


def _url(socket: "Passed") -> str:
    return f"{'unix' if isinstance(socket.endpoint, str) else 'tcp'}://{socket.host_and_port}"
