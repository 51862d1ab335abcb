"""Stripe's einhorn: Ruby's einhorn gem, Go's goji/graceful and einhorn packages."""

from multibinder.launch.styles.style import Style

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multibinder.launch.styles.passed import Passed


class Einhorn(Style):
    """EINHORN_FD_COUNT, EINHORN_FD_0 and so on. EINHORN_MASTER_PID is the parent, which clients check.

    The acknowledgement goes to EINHORN_SOCK_PATH, which 'run' sets.
    """

    name = "einhorn"
    own = ("EINHORN_FD_*", "EINHORN_FDS", "EINHORN_MASTER_PID")
    parent_pid = "EINHORN_MASTER_PID"

    def variables(self, sockets: "Sequence[Passed]", environment: "Mapping[str, str]") -> "dict[str, str]":
        numbers = {f"EINHORN_FD_{index}": str(each.fd) for index, each in enumerate(sockets)}
        return {"EINHORN_FD_COUNT": str(len(sockets)), **numbers}
