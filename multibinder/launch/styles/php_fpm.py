"""PHP-FPM's own way, by which its master executes itself (SIGUSR2)."""

from multibinder.launch.styles.style import Style

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multibinder.launch.styles.passed import Passed


class PhpFpm(Style):
    """``FPM_SOCKETS="127.0.0.1:9000=3,/run/php.sock=4"``. It compares an address as inet_ntop(3) prints it, and a path
    with its configuration."""

    name = "php-fpm"
    own = ("FPM_SOCKETS", "FPM_SOCKETS_*")

    def variables(self, sockets: "Sequence[Passed]", environment: "Mapping[str, str]") -> "dict[str, str]":
        return {"FPM_SOCKETS": ",".join(f"{_key(each)}={each.fd}" for each in sockets)}


def _key(socket: "Passed") -> str:
    endpoint = socket.endpoint
    # It has no brackets around an IPv6 address: fpm_sockets_hash_op() in sapi/fpm/fpm/fpm_sockets.c.
    return endpoint if isinstance(endpoint, str) else f"{endpoint[0]}:{endpoint[1]}"
