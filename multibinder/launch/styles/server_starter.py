"""Perl's Server::Starter (start_server): Starlet, Starman, h2o."""

from multibinder.launch.styles.style import Style

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multibinder.launch.styles.passed import Passed


class ServerStarter(Style):
    """``SERVER_STARTER_PORT="127.0.0.1:80=3;/run/app.sock=4"``, and the generation, which 'run' counts."""

    name = "server-starter"
    own = ("SERVER_STARTER_PORT", "SERVER_STARTER_GENERATION")

    def variables(self, sockets: "Sequence[Passed]", environment: "Mapping[str, str]") -> "dict[str, str]":
        return {
            "SERVER_STARTER_PORT": ";".join(f"{each.host_and_port}={each.fd}" for each in sockets),
            "SERVER_STARTER_GENERATION": environment.get("MULTIBINDER_GENERATION", "1"),
        }
