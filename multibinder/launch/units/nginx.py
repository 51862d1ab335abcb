"""A unit that starts nginx: Debian's and nginx.org's, which fork, and those with 'daemon off'."""

from __future__ import annotations

from collections.abc import Iterator

from multibinder.launch.units.kept_way import Kept, name_of_program
from multibinder.launch.units.unit import Unit

_NAMES = ("nginx", "openresty")


class Nginx(Kept):
    """nginx takes its listeners from a variable, as after its own upgrade (SIGUSR2), and opens those that are missing.

    It stays in the foreground then, so ``Type=forking`` needs a parent that ends when nginx is up. With that parent
    gone, its own upgrade works.
    """

    program = "nginx"
    bears_shutdown = True

    def serves(self, unit: Unit) -> bool:
        return len(unit.commands("ExecStart")) == 1 and name_of_program(unit) in _NAMES

    def obstacles(self, unit: Unit) -> Iterator[str]:
        [start] = unit.commands("ExecStart")
        if "master_process off" in start.text:
            yield "nginx has 'master_process off', which is for developers: it can neither reload nor pass its sockets"
        if unit.fact("Type") == "forking" and not unit.fact("PIDFile"):
            yield "it has Type=forking without PIDFile=, by which systemd finds nginx; add PIDFile= in a drop-in"

    def notes(self, unit: Unit) -> Iterator[str]:
        yield from super().notes(unit)
        if unit.fact("Type") != "forking":
            yield (
                f"nginx ignores SIGUSR2, its own upgrade, after its next start, because it has the same parent: "
                f"'systemctl restart {unit.name}' upgrades it, and refuses no client"
            )
