"""sd_listen_fds(3): gunicorn, uWSGI, puma, unicorn, unbound, httpd, Go's activation package, Rust's listenfd."""

from multibinder.launch.styles.style import Style

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multibinder.launch.styles.passed import Passed

#: What sd_listen_fds_with_names(3) calls a descriptor without a name.
_NO_NAME = "unknown"


class Systemd(Style):
    """LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES. The variables of a caller are never passed on, in any style."""

    name = "systemd"
    own = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
    pid = "LISTEN_PID"

    def variables(self, sockets: "Sequence[Passed]", environment: "Mapping[str, str]") -> "dict[str, str]":
        names = ":".join(each.name or _NO_NAME for each in sockets)
        return {"LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": names}
