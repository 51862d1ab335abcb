"""The errors about network namespaces."""

from __future__ import annotations

from multibinder.cli.error_catalogue.entry import Section, entry

NAMESPACES = Section(
    "Other network namespaces",
    "From requests with `netns` ([how to use it](how-to/containers.md)), and from rules of the policy.",
    (
        entry(
            "Could not bind: the network namespace … cannot be used: …",
            cause="there is no such name, process or cookie; the path leads to another file or a symbolic link; the "
            "client is in another PID namespace and gives a PID; or the binder may not open or enter the namespace",
            remedy="`ip netns list` shows the names. For a PID the binder needs CAP_SYS_PTRACE, to enter a namespace "
            "CAP_SYS_ADMIN: the drop-in `netns.conf` (systemd/examples/multibinder.service.d)",
            fragment="the network namespace",
        ),
        entry(
            "Could not bind: …: option netns: operation not permitted: to enter it, the binder needs CAP_SYS_ADMIN",
            cause="the shipped unit lets the binder make sockets in its own network namespace only",
            remedy="install the drop-in `netns.conf`, `systemctl daemon-reload`, and restart the binder",
            fragment="to enter it, the binder needs CAP_SYS_ADMIN",
        ),
        entry(
            "… is the same in every network namespace: leave netns out",
            cause="the path of a Unix socket belongs to no network namespace",
            remedy="leave `netns` out; a container reaches the path through a mount",
        ),
        entry(
            "Not allowed to … in the network namespace …: …",
            cause="without a policy, only root and the binder's own user may name a namespace, from the binder's PID "
            "namespace; with one, who is allowed it by a rule with `netns`",
            remedy="a rule with `netns` (docs/reference/policy.md); `multibinder policy check --netns …`",
            fragment="in the network namespace",
        ),
        entry(
            "netns … is no pattern: …",
            "netns … is a path with a wildcard: only names may have one",
            cause="a rule names a namespace by what may be another one tomorrow, or by a pattern of paths",
            remedy='`netns = [".", "blue", "web-*", "/run/app/ns"]`, or `"*"` for all',
        ),
    ),
)
